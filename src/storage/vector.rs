//! Files with one vector: directions of the residual stream, as safetensors.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, TensorView};

use super::input::read_bounded;
use crate::error::{Error, Result};

/// Largest file that is read.
const MAX_BYTES: u64 = 4 << 20;

/// The name of the tensor.
const NAME: &str = "direction";

/// Reads a vector: the tensor `direction` of a safetensors file, or its only one, in any floating
/// format and of any shape with one dimension greater than 1.
///
/// # Errors
/// [`Error::File`] for a file that is missing, too large or malformed, or has no such tensor.
pub fn read_vector(path: &Path) -> Result<Vec<f32>> {
    let bytes = read_bounded(path, MAX_BYTES)?;
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
        .map_err(|_| Error::file(path, "(whole file)", "no safetensors file"))?;
    let tensor = match tensors.get(NAME) {
        Some(tensor) => tensor,
        None if tensors.len() == 1 => {
            tensors.values().next().ok_or_else(|| Error::file(path, NAME, "missing"))?
        }
        None => {
            let message = format!("{} tensors, none of this name", tensors.len());
            return Err(Error::file(path, NAME, message));
        }
    };
    if !tensor.dtype().is_float() || tensor.dims().iter().filter(|n| **n != 1).count() != 1 {
        let message =
            format!("{:?} {:?}, expected a vector of floats", tensor.dtype(), tensor.dims());
        return Err(Error::file(path, NAME, message));
    }
    let values = |tensor: &Tensor| tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>();
    values(tensor).map_err(|error| Error::file(path, NAME, error.to_string()))
}

/// Returns the safetensors file of a vector: the tensor `direction`.
///
/// # Errors
/// [`Error::File`], naming `path`, for values that safetensors does not take.
pub fn vector_file(path: &Path, values: &[f32]) -> Result<Vec<u8>> {
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    TensorView::new(Dtype::F32, vec![values.len()], &bytes)
        .and_then(|tensor| safetensors::serialize([(NAME, tensor)], None))
        .map_err(|error| Error::file(path, NAME, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Vec<u8> {
        let tensor = TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
        safetensors::serialize([(name, tensor)], None).unwrap()
    }

    #[test]
    fn a_vector_is_read_in_any_format_and_anything_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.safetensors");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read_vector(&path).map_err(|error| error.to_string())
        };
        let values = [1.5f32, -2.0, 3.25];
        assert_eq!(read(&vector_file(&path, &values).unwrap()), Ok(values.to_vec()));
        // 1.5 and -2 in half precision, under another name, as a row.
        let half = file("v", Dtype::F16, &[1, 2], &[0x00, 0x3e, 0x00, 0xc0]);
        assert_eq!(read(&half), Ok(vec![1.5, -2.0]));
        let fails = |bytes: &[u8], expected: &str| {
            let error = read(bytes).unwrap_err();
            assert!(error.contains(expected) && error.contains("v.safetensors"), "{error}");
        };
        fails(b"", "no safetensors file");
        fails(&half[..half.len() - 1], "no safetensors file");
        fails(&[0xff; 64], "no safetensors file");
        fails(&file("v", Dtype::U8, &[2], &[1, 2]), "expected a vector of floats");
        fails(&file("v", Dtype::F16, &[1, 1], &[0; 2]), "expected a vector of floats");
        fails(&file("v", Dtype::F16, &[2, 2], &[0; 8]), "expected a vector of floats");
        let tensor = || TensorView::new(Dtype::F16, vec![1], &[0; 2]).unwrap();
        let two = safetensors::serialize([("a", tensor()), ("b", tensor())], None).unwrap();
        fails(&two, "2 tensors, none of this name");
        assert!(read_vector(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
