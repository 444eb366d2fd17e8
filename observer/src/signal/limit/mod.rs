//! Limits: how full everything is that has a bound, and how the host is set.

mod view;

pub use self::view::{Bound, Facts, Host, Jvm, Node, Pm2Daemon, Postgres, Redis, Runtime, View};
