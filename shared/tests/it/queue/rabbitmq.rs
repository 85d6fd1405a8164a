//! What only a broker can do to us: cut connections, say nothing, lose queues, differ.
