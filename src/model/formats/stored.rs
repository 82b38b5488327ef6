//! The floating-point formats of files, whose bits a fault may flip.

use candle_core::DType;
use half::{bf16, f16};

/// A floating-point format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredFloat {
    /// 1 sign bit, 8 of the exponent, 23 of the mantissa.
    F32,
    /// 1 sign bit, 5 of the exponent, 10 of the mantissa.
    F16,
    /// 1 sign bit, 8 of the exponent, 7 of the mantissa.
    Bf16,
}

impl StoredFloat {
    /// Returns the format of a data type; `None` for one that is none of these.
    pub fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32),
            DType::F16 => Some(Self::F16),
            DType::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// Returns the number of bits.
    pub fn bits(self) -> u32 {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::Bf16 => 16,
        }
    }

    /// Returns the number of bits of the exponent, which come after the sign.
    pub fn exponent_bits(self) -> u32 {
        match self {
            Self::F32 | Self::Bf16 => 8,
            Self::F16 => 5,
        }
    }

    /// Returns the value with one bit flipped: 0 is the sign, then come the exponent and the
    /// mantissa, each from its highest bit down. The same value for a bit that it does not have.
    pub fn flip(self, value: f32, bit: u32) -> f32 {
        let Some(shift) = (self.bits() - 1).checked_sub(bit) else { return value };
        match self {
            Self::F32 => f32::from_bits(value.to_bits() ^ (1 << shift)),
            Self::F16 => f16::from_bits(f16::from_f32(value).to_bits() ^ (1 << shift)).to_f32(),
            Self::Bf16 => bf16::from_bits(bf16::from_f32(value).to_bits() ^ (1 << shift)).to_f32(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bit_is_flipped_as_stored() {
        use StoredFloat::*;
        for (format, bit, expected) in [
            (F32, 0, -1.5),
            (F16, 0, -1.5),
            (Bf16, 0, -1.5),
            // The exponent of 1.5 is 0: its highest bit makes it infinite, or not a number.
            (F32, 8, 0.75),
            (Bf16, 8, 0.75),
            (F16, 5, 0.75),
            (F32, 9, 1.0),
            (Bf16, 9, 1.0),
            (F16, 6, 1.0),
            (F32, 31, 1.5 + f32::EPSILON),
            (Bf16, 15, 1.5 + 1.0 / 128.0),
            (F16, 15, 1.5 + 1.0 / 1024.0),
            (F16, 16, 1.5),
            (F32, 32, 1.5),
        ] {
            assert_eq!(format.flip(1.5, bit), expected, "{format:?} {bit}");
            assert_eq!(format.flip(format.flip(1.5, bit), bit), 1.5);
        }
        for format in [F32, F16, Bf16] {
            assert!(!format.flip(1.5, 1).is_finite());
        }
    }
}
