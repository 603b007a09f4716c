//! Every order in which things can happen to a mesh on its way, explored breadth first.
//!
//! A state is: the resources, which CAs are ready, the plan that is followed (there, back, or
//! there again), and for each proxy whether it runs and is connected, which roots it holds, which
//! SPIFFE IDs it accepts of whom, whose certificate it serves and whether it accepts plaintext.
//! Each of these reaches a proxy by itself, at any time or never. Operators apply one change at a
//! time and repeat what they did; proxies lose their connection, end, start and restart; a CA
//! becomes ready late or never; the way back begins anywhere. A plan has no memory, so a control
//! plane that restarts is in no other state than before.
//!
//! What resources give a proxy is what [`select`](crate::select) and [`tls`](crate::tls) decide,
//! and is not taken from the planner.

mod explore;
mod tests;
mod world;
