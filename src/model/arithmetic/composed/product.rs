//! The product with a packed matrix as operations of candle.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

use crate::model::arithmetic::linear::PackedMatrix;

/// The product `x W^T` with a backward for `x` alone: candle's own matmul would also compute the
/// gradient of the frozen weight.
pub struct Product(pub Arc<PackedMatrix>);

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "packed-linear"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = contiguous(storage, layout)?;
        let rows = x.len() / self.0.in_();
        let mut y = vec![0f32; rows * self.0.out()];
        self.0.matmul(x, rows, &mut y);
        Ok((CpuStorage::F32(y), Shape::from((rows, self.0.out()))))
    }

    fn bwd(
        &self,
        _x: &Tensor,
        _y: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        gradient.contiguous()?.apply_op1_no_bwd(&Transposed(self.0.clone())).map(Some)
    }
}

/// The product `d W`: the gradient of [`Product`] to its input.
struct Transposed(Arc<PackedMatrix>);

impl CustomOp1 for Transposed {
    fn name(&self) -> &'static str {
        "packed-linear-backward"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let d = contiguous(storage, layout)?;
        let rows = d.len() / self.0.out();
        let mut g = vec![0f32; rows * self.0.in_()];
        self.0.matmul_transposed(d, rows, &mut g);
        Ok((CpuStorage::F32(g), Shape::from((rows, self.0.in_()))))
    }
}

/// Returns the values of a contiguous operand.
fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let (from, to) = layout
        .contiguous_offsets()
        .ok_or_else(|| candle_core::Error::msg("operand is not contiguous"))?;
    Ok(&storage.as_slice::<f32>()?[from..to])
}
