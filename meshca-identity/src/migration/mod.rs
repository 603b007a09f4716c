//! Moves a live mesh from one CA, model or trust domain to another.
