//! The client side of SMTP as pure functions: replies parsed, verbs written.
