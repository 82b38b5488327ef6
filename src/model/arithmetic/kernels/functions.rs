//! The scalar functions of the kernels, in forms that the compiler turns into vectors.

/// Returns `e^x` to 2 ulp for finite `x`; 0 below -87.3, infinity above 88.3. The polynomial of
/// Cephes, in a form that vectorises: libm's does not, and Rust's cast to an integer takes a dozen
/// instructions to saturate, so the integer is read from the bits of a rounded sum.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOW: f32 = -87.3;
    const HIGH: f32 = 88.3;
    /// Adding 1.5 * 2^23 leaves no bits for a fraction.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(LOW, HIGH);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-0.693_359_4, clamped);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4f32;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p.mul_add(r, c);
    }
    let p = p.mul_add(r * r, r) + 1.0;
    let y = p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()));
    let y = if x < LOW { 0.0 } else { y };
    let y = if x > HIGH { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

/// Returns `ln(x)` to a few ulp for positive normal `x`, by the polynomial of Cephes; about -87 for
/// 0 and denormals.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    let bits = x.max(f32::MIN_POSITIVE).to_bits();
    let e = ((bits >> 23) as i32 - 126) as f32;
    let m = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000); // [0.5, 1)
    let low = m < std::f32::consts::FRAC_1_SQRT_2;
    let (e, m) = (if low { e - 1.0 } else { e }, if low { m + m } else { m } - 1.0);
    let z = m * m;
    let mut p = 7.037_683_6e-2f32;
    for c in [
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ] {
        p = p.mul_add(m, c);
    }
    let y = (p * m * z) + e.mul_add(-2.121_944_4e-4, -0.5 * z);
    e.mul_add(0.693_359_4, m + y)
}

/// Returns `max(x, 0)^2`.
#[inline(always)]
pub fn relu_squared(x: f32) -> f32 {
    // Not `max`, which turns a NaN into 0.
    if x < 0.0 { 0.0 } else { x * x }
}

/// Returns the hyperbolic tangent.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let t = exp(-2.0 * x.abs());
    ((1.0 - t) / (1.0 + t)).copysign(x)
}

/// Returns `ln(1 + e^x)` without overflow on one side or cancellation on the other: `ln(1 + t)`
/// with Kahan's correction for the bits of `t` that the sum loses.
#[inline(always)]
pub fn softplus(x: f32) -> f32 {
    let t = exp(-x.abs());
    let sum = 1.0 + t;
    let log = if sum == 1.0 { t } else { ln(sum) * (t / (sum - 1.0)) };
    (if x < 0.0 { 0.0 } else { x }) + log
}

/// Returns `exp(-exp(x))`.
#[inline(always)]
pub fn decay6(x: f32) -> f32 {
    exp(-exp(x))
}

/// Returns `exp(-exp(-1/2) sigmoid(x))`.
#[inline(always)]
pub fn decay7(x: f32) -> f32 {
    exp(-0.606_531 * sigmoid(x))
}

/// Returns `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Returns `x * sigmoid(x)`.
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// Returns `x * Phi(x)`, by the error function of Abramowitz and Stegun 7.1.26 (absolute error
/// below 1.5e-7).
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let mut p = 1.061_405_4f32;
    for c in [-1.453_152_1, 1.421_413_7, -0.284_496_72, 0.254_829_6] {
        p = p.mul_add(t, c);
    }
    // The tail `1 - erf`, so that nothing cancels for large negative `x`.
    let tail = 0.5 * p * t * exp(-z * z);
    x * if x < 0.0 { tail } else { 1.0 - tail }
}

/// Returns `x / 2 * (1 + tanh(u))` with `u = sqrt(2 / pi) * (x + 0.044715 x^3)`, as `x * sigmoid(2
/// u)`.
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    let u = 0.797_884_6 * (0.044_715 * x * x).mul_add(x, x);
    x / (1.0 + exp(-2.0 * u))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_and_ln_agree_with_the_standard_library() {
        for i in -8700..8700 {
            let x = i as f32 / 100.0;
            let (got, want) = (exp(x), x.exp());
            assert!(((got - want) / want).abs() < 5e-7, "exp({x}) = {got}, not {want}");
        }
        assert_eq!((exp(-200.0), exp(200.0), exp(f32::NEG_INFINITY)), (0.0, f32::INFINITY, 0.0));
        assert!(exp(f32::NAN).is_nan());
        for i in 1..20_000 {
            let x = i as f32 / 997.0;
            let (got, want) = (ln(x), x.ln());
            assert!((got - want).abs() < 3e-7 * want.abs().max(1.0), "ln({x}) = {got}, not {want}");
        }
    }

    #[test]
    fn activations_agree_with_their_definitions() {
        // The normal distribution function by Simpson's rule, from -9.
        let normal = |x: f64| {
            let density = |t: f64| (-0.5 * t * t).exp() / std::f64::consts::TAU.sqrt();
            let (n, from) = (4000, -9.0);
            let h = (x - from) / f64::from(n);
            let inner: f64 = (1..n)
                .map(|i| if i % 2 == 0 { 2.0 } else { 4.0 } * density(from + f64::from(i) * h))
                .sum();
            h / 3.0 * (density(from) + inner + density(x))
        };
        for i in -80..80 {
            let x = f64::from(i) / 10.0;
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            let close = |got: f32, want: f64| {
                assert!((f64::from(got) - want).abs() < 2e-6, "{x}: {got}, not {want}")
            };
            close(silu(x as f32), x / (1.0 + (-x).exp()));
            close(gelu(x as f32), x * normal(x));
            close(gelu_tanh(x as f32), 0.5 * x * (1.0 + u.tanh()));
            close(sigmoid(x as f32), 1.0 / (1.0 + (-x).exp()));
            close(tanh(x as f32), x.tanh());
            close(decay6(x as f32), (-x.exp()).exp());
            close(decay7(x as f32), (-0.606_531 / (1.0 + (-x).exp())).exp());
            let close_relatively = |got: f32, want: f64| {
                assert!((f64::from(got) / want - 1.0).abs() < 1e-6, "{x}: {got}, not {want}")
            };
            close_relatively(softplus(2.0 * x as f32), (2.0 * x).exp().ln_1p());
        }
    }
}
