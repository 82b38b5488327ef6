//! The recurrences in candle operations, one position after the other: slow, plain, differentiable.

use candle_core::{D, Device, Tensor};

use super::{constant, dense_tables, is_affine, vector};
use crate::error::{Error, Result};
use crate::model::arithmetic::scan::{EMPTY_EXPONENT, Recurrence, RowStart};
use crate::model::hooks::Block;

/// Implements [`Numerics::scan`](crate::model::arithmetic::Numerics::scan).
pub fn run(
    scan: &Recurrence<&Tensor>,
    rows: &[RowStart],
    blocks: &[Block],
    keep: &[usize],
) -> Result<(Tensor, Vec<f32>)> {
    let (mut outputs, mut kept) = (Vec::new(), Vec::new());
    for row in rows {
        let mut state = initial(scan, row)?;
        for token in row.tokens.clone() {
            // RWKV-4 and 6 read the state before it changes, the others after.
            let step = Step { scan, token };
            let before = step.before(&state)?;
            state = step.advance(&state)?;
            let mine: Vec<Block> = blocks
                .iter()
                .filter(|b| b.tokens.contains(&token))
                .map(|b| one_token(b, token))
                .collect();
            if !mine.is_empty() {
                state = edited(&state, &mine)?;
            }
            if keep.binary_search(&token).is_ok() {
                kept.extend(state.flatten_all()?.to_vec1::<f32>()?);
            }
            outputs.push(match before {
                Some(y) => y,
                None => step.after(&state)?,
            });
        }
    }
    Ok((Tensor::cat(&outputs, 0)?, kept))
}

/// Returns the state a row starts from, in the shape that the steps work on.
fn initial(scan: &Recurrence<&Tensor>, row: &RowStart) -> Result<Tensor> {
    let shape = match scan {
        Recurrence::Mamba { x, b, .. } => vec![x.dim(1)?, b.dim(1)?],
        Recurrence::Mamba2 { x, a, state_size, .. } => {
            vec![a.len(), *state_size, x.dim(1)? / a.len()]
        }
        Recurrence::Wkv4 { v, .. } => vec![3 * v.dim(1)?],
        Recurrence::Wkv6 { v, head_dim, .. } | Recurrence::Wkv7 { v, head_dim, .. } => {
            vec![v.dim(1)? / head_dim, *head_dim, *head_dim]
        }
    };
    let mut values = vec![0f32; shape.iter().product()];
    if let Recurrence::Wkv4 { v, .. } = scan {
        values[2 * v.dim(1)?..].fill(EMPTY_EXPONENT);
    }
    if !row.initial.is_empty() {
        values.copy_from_slice(row.initial);
    }
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// Restricts a block to one of its tokens, as token 0.
fn one_token(block: &Block, token: usize) -> Block {
    let mut one = Block { tokens: 0..1, ..block.clone() };
    let columns = block.columns.len();
    if let crate::model::hooks::Change::Affine { shift: Some(shift), .. } = &mut one.change
        && shift.len() != columns
    {
        *shift = shift[(token - block.tokens.start) * columns..][..columns].into();
    }
    one
}

/// Applies edits to a state.
fn edited(state: &Tensor, blocks: &[Block]) -> Result<Tensor> {
    if !blocks.iter().all(is_affine) {
        return Err(Error::internal("noise in proportion to a state has no gradient mode"));
    }
    let (scale, shift) = dense_tables(blocks, 1, state.elem_count());
    let flat = state.reshape((1, state.elem_count()))?;
    Ok(((flat * constant(&scale, 1)?)? + constant(&shift, 1)?)?.reshape(state.shape())?)
}

/// One step of a recurrence.
struct Step<'a> {
    scan: &'a Recurrence<'a, &'a Tensor>,
    token: usize,
}

impl Step<'_> {
    /// Returns the values of the token, `[width]`.
    fn at(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.get(self.token)?)
    }

    /// Returns the values of the token by head, `[heads, dim, 1]`.
    fn column(&self, x: &Tensor, dim: usize) -> Result<Tensor> {
        Ok(self.at(x)?.reshape(((), dim, 1))?)
    }

    /// Returns the values of the token by head, `[heads, 1, dim]`.
    fn row(&self, x: &Tensor, dim: usize) -> Result<Tensor> {
        Ok(self.at(x)?.reshape(((), 1, dim))?)
    }

    /// Returns the output, `[1, width]`, of a recurrence that reads the state before this token.
    fn before(&self, state: &Tensor) -> Result<Option<Tensor>> {
        let y = match self.scan {
            Recurrence::Wkv4 { k, v, first, .. } => {
                let [num, den, max] = sums(state, v.dim(1)?)?;
                let (k, v) = (self.at(k)?, self.at(v)?);
                let now = k.broadcast_add(&vector(first)?)?;
                let top = max.maximum(&now)?.detach();
                let (past, now) = ((max - &top)?.exp()?, (now - &top)?.exp()?);
                (((&past * num)? + (&now * v)?)? / ((past * den)? + now)?)?
            }
            Recurrence::Wkv6 { r, k, v, first, head_dim, .. } => {
                let dim = *head_dim;
                let now = (self.column(k, dim)?.broadcast_mul(&self.row(v, dim)?))?;
                let weighted = now.broadcast_mul(&vector(first)?.reshape(((), dim, 1))?)?;
                (weighted + state)?.broadcast_mul(&self.column(r, dim)?)?.sum(1)?.flatten_all()?
            }
            _ => return Ok(None),
        };
        Ok(Some(y.unsqueeze(0)?))
    }

    /// Returns the state after this token.
    fn advance(&self, state: &Tensor) -> Result<Tensor> {
        Ok(match self.scan {
            Recurrence::Mamba { x, dt, b, a, .. } => {
                let (x, dt, b) = (
                    self.at(x)?.unsqueeze(1)?,
                    self.at(dt)?.unsqueeze(1)?,
                    self.at(b)?.unsqueeze(0)?,
                );
                let decay = constant(a, x.dim(0)?)?.broadcast_mul(&dt)?.exp()?;
                ((decay * state)? + (dt * x)?.broadcast_mul(&b)?)?
            }
            Recurrence::Mamba2 { x, dt, b, a, groups, state_size, .. } => {
                let (heads, dim) = (a.len(), x.dim(1)? / a.len());
                let dt = self.at(dt)?;
                let decay = (vector(a)? * &dt)?.exp()?.reshape((heads, 1, 1))?;
                let b = by_group(&self.at(b)?, *groups, heads, *state_size)?;
                let new = b
                    .broadcast_mul(&dt.reshape((heads, 1, 1))?)?
                    .broadcast_mul(&self.row(x, dim)?)?;
                (state.broadcast_mul(&decay)? + new)?
            }
            Recurrence::Wkv4 { k, v, decay, .. } => {
                let width = v.dim(1)?;
                let [num, den, max] = sums(state, width)?;
                let (k, v) = (self.at(k)?, self.at(v)?);
                let past = max.broadcast_add(&vector(decay)?)?;
                let top = past.maximum(&k)?.detach();
                let (past, now) = ((past - &top)?.exp()?, (k - &top)?.exp()?);
                let num = ((&past * num)? + (&now * v)?)?.reshape((width, 1))?;
                let den = ((past * den)? + now)?.reshape((width, 1))?;
                Tensor::cat(&[Tensor::cat(&[num, den], 1)?.flatten_all()?, top], 0)?
            }
            Recurrence::Wkv6 { w, k, v, head_dim, .. } => {
                let dim = *head_dim;
                let new = self.column(k, dim)?.broadcast_mul(&self.row(v, dim)?)?;
                (state.broadcast_mul(&self.column(w, dim)?)? + new)?
            }
            Recurrence::Wkv7 { w, k, v, kk, b, head_dim, .. } => {
                let dim = *head_dim;
                let removed = state.broadcast_mul(&self.column(kk, dim)?)?.sum_keepdim(1)?;
                let kept = (state.broadcast_mul(&self.column(w, dim)?)?
                    - self.column(b, dim)?.broadcast_mul(&removed)?)?;
                (kept + self.column(k, dim)?.broadcast_mul(&self.row(v, dim)?)?)?
            }
        })
    }

    /// Returns the output, `[1, width]`, of a recurrence that reads the state after this token.
    fn after(&self, state: &Tensor) -> Result<Tensor> {
        let y = match self.scan {
            Recurrence::Mamba { x, c, d, .. } => {
                let read = state.broadcast_mul(&self.at(c)?.unsqueeze(0)?)?.sum(D::Minus1)?;
                (read + (self.at(x)? * vector(d)?)?)?
            }
            Recurrence::Mamba2 { x, c, a, d, groups, state_size, .. } => {
                let (heads, dim) = (a.len(), x.dim(1)? / a.len());
                let c = by_group(&self.at(c)?, *groups, heads, *state_size)?;
                let read = state.broadcast_mul(&c)?.sum(1)?;
                let passed =
                    self.at(x)?.reshape((heads, dim))?.broadcast_mul(&vector(d)?.unsqueeze(1)?)?;
                (read + passed)?.flatten_all()?
            }
            Recurrence::Wkv7 { r, head_dim, .. } => {
                state.broadcast_mul(&self.column(r, *head_dim)?)?.sum(1)?.flatten_all()?
            }
            Recurrence::Wkv4 { .. } | Recurrence::Wkv6 { .. } => {
                return Err(Error::internal("this recurrence reads the state before it changes"));
            }
        };
        Ok(y.unsqueeze(0)?)
    }
}

/// Returns the numerators, denominators and exponents of RWKV-4's state, `[width]` each.
fn sums(state: &Tensor, width: usize) -> Result<[Tensor; 3]> {
    let pairs = state.narrow(0, 0, 2 * width)?.reshape((width, 2))?;
    Ok([
        pairs.narrow(1, 0, 1)?.flatten_all()?,
        pairs.narrow(1, 1, 1)?.flatten_all()?,
        state.narrow(0, 2 * width, width)?,
    ])
}

/// Repeats `B` or `C` of the groups for their heads, `[heads, state_size, 1]`.
fn by_group(x: &Tensor, groups: usize, heads: usize, state_size: usize) -> Result<Tensor> {
    let spread =
        x.reshape((groups, 1, state_size))?.broadcast_as((groups, heads / groups, state_size))?;
    Ok(spread.reshape((heads, state_size, 1))?)
}
