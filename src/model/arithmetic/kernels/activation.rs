//! Activations over slices, in place and as the gate of a gated MLP.

use multiversion::multiversion;
use rayon::prelude::*;

use super::functions::{
    decay6, decay7, gelu, gelu_tanh, relu_squared, sigmoid, silu, softplus, tanh,
};
use crate::model::arithmetic::pool::Pooled;
use crate::model::config::Activation;

/// Returns `activation(gate) * up`, `[n, width]`, of `x`, `[n, 2 * width]`, the gate first.
pub fn gate(x: &[f32], width: usize, activation: Activation) -> Pooled {
    let mut y = Pooled::take(x.len() / 2);
    let rows = y.par_chunks_mut(width).zip(x.par_chunks(2 * width));
    rows.for_each(|(y, x)| gate_row(y, &x[..width], &x[width..], activation));
    y
}

/// Computes `y = activation(gate) * up`.
pub fn gate_row(y: &mut [f32], gate: &[f32], up: &[f32], activation: Activation) {
    match activation {
        Activation::Silu => silu_gate(y, gate, up),
        Activation::Gelu => gelu_gate(y, gate, up),
        Activation::GeluTanh => gelu_tanh_gate(y, gate, up),
        Activation::ReluSquared => relu_squared_gate(y, gate, up),
        Activation::Sigmoid => sigmoid_gate(y, gate, up),
        Activation::Tanh => tanh_gate(y, gate, up),
        Activation::Softplus => softplus_gate(y, gate, up),
        Activation::Decay6 => decay6_gate(y, gate, up),
        Activation::Decay7 => decay7_gate(y, gate, up),
    }
}

/// Applies an activation in place.
pub fn activate(x: &mut [f32], activation: Activation) {
    x.par_chunks_mut(1 << 12).for_each(|x| match activation {
        Activation::Silu => silu_all(x),
        Activation::Gelu => gelu_all(x),
        Activation::GeluTanh => gelu_tanh_all(x),
        Activation::ReluSquared => relu_squared_all(x),
        Activation::Sigmoid => sigmoid_all(x),
        Activation::Tanh => tanh_all(x),
        Activation::Softplus => softplus_all(x),
        Activation::Decay6 => decay6_all(x),
        Activation::Decay7 => decay7_all(x),
    });
}

/// Defines the two forms of an activation over slices: as a gate, and in place.
macro_rules! activations {
    ($($function:ident, $gated:ident, $all:ident;)*) => {$(
        #[multiversion(targets(
            "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
            "x86_64+avx2+fma",
        ))]
        fn $gated(y: &mut [f32], gate: &[f32], up: &[f32]) {
            for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
                *y = $function(*g) * u;
            }
        }

        #[multiversion(targets(
            "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
            "x86_64+avx2+fma",
        ))]
        fn $all(x: &mut [f32]) {
            x.iter_mut().for_each(|x| *x = $function(*x));
        }
    )*};
}

activations! {
    silu, silu_gate, silu_all;
    gelu, gelu_gate, gelu_all;
    gelu_tanh, gelu_tanh_gate, gelu_tanh_all;
    relu_squared, relu_squared_gate, relu_squared_all;
    sigmoid, sigmoid_gate, sigmoid_all;
    tanh, tanh_gate, tanh_all;
    softplus, softplus_gate, softplus_all;
    decay6, decay6_gate, decay6_all;
    decay7, decay7_gate, decay7_all;
}
