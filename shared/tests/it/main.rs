//! The contracts of the ports, run against every implementation of each, and what is particular
//! to one of them. Needs the servers that `testkit` names.
mod event;
mod queue;
