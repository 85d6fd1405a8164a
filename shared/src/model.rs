//! Shapes of what is written and of what becomes of it. Pure: no clock, no I/O.
pub mod dead_letter;
pub mod outcome;
