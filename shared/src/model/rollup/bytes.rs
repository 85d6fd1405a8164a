//! Stored form of a rollup. One rollup has one form only: equal rollups have equal bytes.
//!
//! ```text
//! 1 byte    version, 1
//! varint    number of bins; 0: nothing follows
//! per bin   varint of the key (the first one zigzag, the others as the distance from the one
//!           before), varint of the count
//! 8 bytes   smallest value, f64, big-endian
//! 8 bytes   largest value
//! 1 byte    number of parts of the sum, 0 for a sum of 0
//! per part  8 bytes, by falling magnitude
//! ```
//!
//! Varints are little-endian groups of seven bits, as short as possible. Input is not trusted: it is
//! checked and never used as an index, and nothing is allocated before its bytes are there.
use super::Rollup;
use super::sketch::{BINS_MAX, Bin, SMALLEST, Sketch};
use super::sum::{ExactSum, PARTS_MAX};
use crate::model::write::check_value;

const VERSION: u8 = 1;

/// Bytes of an encoded rollup at most: a key of one byte and a count of nine in each bin, the sum's
/// parts, and what stands around them. With fewer than two million values in each bin they are
/// less than half of it. Builds that kept every bin wrote more; such a rollup comes within this at
/// its next write.
pub const BYTES_MAX: usize = 10 * BINS_MAX + 8 * PARTS_MAX + 64;

/// The bytes are no rollup that this build can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a rollup of this version")]
pub struct Corrupt;

impl Rollup {
    /// Encodes a rollup: about 30 bytes for one value, two or three more for each further bin.
    pub fn encode(&self) -> Vec<u8> {
        let bins = self.sketch.bins();
        let mut bytes = Vec::with_capacity(32 + 3 * bins.len());
        bytes.push(VERSION);
        write_varint(&mut bytes, bins.len() as u64);
        let Some(first) = bins.first() else { return bytes };
        write_varint(&mut bytes, u64::from(zigzag(first.key)));
        write_varint(&mut bytes, first.count);
        for pair in bins.windows(2) {
            write_varint(&mut bytes, u64::from(pair[1].key.abs_diff(pair[0].key)));
            write_varint(&mut bytes, pair[1].count);
        }
        bytes.extend(self.min.to_be_bytes());
        bytes.extend(self.max.to_be_bytes());
        let parts = self.sum.parts();
        bytes.push(u8::try_from(parts.len()).expect("a sum has at most 40 parts"));
        bytes.extend(parts.iter().flat_map(|part| part.to_be_bytes()));
        bytes
    }

    /// Reads the bytes of [`Rollup::encode`], of this or an earlier build, and nothing else.
    pub fn decode(bytes: &[u8]) -> Result<Self, Corrupt> {
        let mut reader = RollupReader(bytes);
        if reader.byte()? != VERSION {
            return Err(Corrupt);
        }
        let rollup = match reader.varint()? {
            0 => Self::default(),
            bins => reader.rollup(bins)?,
        };
        if reader.0.is_empty() { Ok(rollup) } else { Err(Corrupt) }
    }
}

/// Bytes that are left to read.
struct RollupReader<'a>(&'a [u8]);

impl RollupReader<'_> {
    fn rollup(&mut self, bins: u64) -> Result<Rollup, Corrupt> {
        let sketch = self.sketch(bins)?;
        let (min, max) = (self.value()?, self.value()?);
        let ends = sketch.bins().first().zip(sketch.bins().last()).ok_or(Corrupt)?;
        if min > max || side(min) != ends.0.key.signum() || side(max) != ends.1.key.signum() {
            return Err(Corrupt);
        }
        let mut parts = [0.0; PARTS_MAX];
        let parts = parts.get_mut(..usize::from(self.byte()?)).ok_or(Corrupt)?;
        for part in &mut *parts {
            *part = f64::from_be_bytes(self.take()?);
        }
        Ok(Rollup { sketch, sum: ExactSum::from_parts(parts).ok_or(Corrupt)?, min, max })
    }

    fn sketch(&mut self, bins: u64) -> Result<Sketch, Corrupt> {
        // A bin takes two bytes at least.
        let bins = usize::try_from(bins).ok().filter(|bins| *bins <= self.0.len() / 2).ok_or(Corrupt)?;
        let mut sketch = Sketch::with_capacity(bins);
        let mut key = unzigzag(self.small()?);
        sketch.push(Bin { key, count: self.varint()? }).ok_or(Corrupt)?;
        for _ in 1..bins {
            let distance = Some(self.small()?).filter(|distance| *distance > 0).ok_or(Corrupt)?;
            key = key.checked_add_unsigned(distance).ok_or(Corrupt)?;
            sketch.push(Bin { key, count: self.varint()? }).ok_or(Corrupt)?;
        }
        Ok(sketch)
    }

    /// Reads a value in the form in which it is added.
    fn value(&mut self) -> Result<f64, Corrupt> {
        let value = f64::from_be_bytes(self.take()?);
        let is_minus_zero = value == 0.0 && value.is_sign_negative();
        if is_minus_zero || check_value(value).is_err() { Err(Corrupt) } else { Ok(value) }
    }

    fn small(&mut self) -> Result<u32, Corrupt> {
        u32::try_from(self.varint()?).map_err(|_| Corrupt)
    }

    fn varint(&mut self) -> Result<u64, Corrupt> {
        let mut value = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7F);
            value |= bits << shift;
            if byte < 0x80 {
                let is_short = shift == 0 || byte > 0;
                let fits = (bits << shift) >> shift == bits;
                return if is_short && fits { Ok(value) } else { Err(Corrupt) };
            }
        }
        Err(Corrupt)
    }

    fn byte(&mut self) -> Result<u8, Corrupt> {
        let (byte, rest) = self.0.split_first().ok_or(Corrupt)?;
        self.0 = rest;
        Ok(*byte)
    }

    fn take<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH], Corrupt> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Corrupt)?;
        self.0 = rest;
        Ok(*bytes)
    }
}

/// Sign that the key of a value's bin has.
fn side(value: f64) -> i32 {
    i32::from(value >= SMALLEST) - i32::from(value <= -SMALLEST)
}

fn write_varint(bytes: &mut Vec<u8>, mut value: u64) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            return bytes.push(low);
        }
        bytes.push(low | 0x80);
    }
}

/// Encodes keys of either sign as small numbers: 0, -1, 1, -2, …
fn zigzag(key: i32) -> u32 {
    (key.cast_unsigned() << 1) ^ (key >> 31).cast_unsigned()
}

fn unzigzag(number: u32) -> i32 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}
