//! The sequencer's promises: its rules by hand, its state by properties, and a simulated world.

mod actors;
mod client;
mod rules;
mod same;
mod simulated;
