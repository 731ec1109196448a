//! Targets that break the rules, or only use them in full, and what the initiator makes of them:
//! the right kind of error, soon, with names; and the session goes on.

mod connection;
mod disk;
mod negotiation;
mod support;
mod target;
mod wire;

mod asynchronous;
mod chap;
mod closing;
mod digests;
mod discovery;
mod dropping;
mod garbage;
mod logins;
mod numbers;
mod pings;
mod pinned;
mod r2ts;
mod reads;
mod redirection;
mod silence;
mod statuses;
mod tasks;
mod window;
mod writes;
