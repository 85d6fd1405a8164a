//! RabbitMQ, as the queue and the events use it. Knows no message and no event.
pub(crate) mod connection;
pub mod settings;
pub(crate) mod topology;
