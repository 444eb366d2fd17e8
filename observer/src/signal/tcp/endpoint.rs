//! What listens at the other end: from its name in DNS answers, the port, or the process behind a port of this host.

use std::{collections::BTreeMap, net::IpAddr};

use crate::config::Fault;

/// Ports that databases and caches are known for, and their `db.system.name` (OpenTelemetry database conventions).
const KNOWN: &[(u16, &str)] = &[
    (1433, "microsoft.sql_server"),
    (1521, "oracle.db"),
    (3306, "mysql"),
    (5432, "postgresql"),
    (5433, "postgresql"),
    (6379, "redis"),
    (6380, "redis"),
    (6432, "postgresql"),
    (9042, "cassandra"),
    (11211, "memcached"),
    (26379, "redis"),
    (27017, "mongodb"),
];

/// What databases call themselves in `comm`.
const SERVERS: &[(&str, &str)] = &[
    ("postgres", "postgresql"),
    ("pgbouncer", "postgresql"),
    ("redis-server", "redis"),
    ("valkey-server", "redis"),
    ("mysqld", "mysql"),
    ("mariadbd", "mariadb"),
    ("mongod", "mongodb"),
    ("memcached", "memcached"),
];

/// Port and name tables. Names of peers change as DNS answers are seen.
#[derive(Debug, Clone, Default)]
pub struct Naming {
    ports: BTreeMap<u16, String>,
    /// Ports of this host that a database listens on, by who listens.
    local: BTreeMap<u16, &'static str>,
}

/// The ports watched by default.
pub fn known_ports() -> impl Iterator<Item = u16> {
    KNOWN.iter().map(|(port, _)| *port)
}

impl Naming {
    /// The known ports, further `ports`, and `systems` as `PORT=SYSTEM`.
    ///
    /// # Errors
    /// If an entry of `systems` has another form.
    pub fn new(ports: &[u16], systems: &[String]) -> Result<Self, Fault> {
        let mut naming = Self::default();
        naming.ports.extend(ports.iter().map(|port| (*port, String::new())));
        naming.ports.extend(KNOWN.iter().map(|(port, system)| (*port, (*system).to_owned())));
        for entry in systems {
            let parsed = entry
                .split_once('=')
                .and_then(|(port, system)| Some((port.trim().parse().ok()?, system.trim())));
            let Some((port @ 1.., system)) = parsed else {
                let what = format!("{entry:?} is not PORT=SYSTEM");
                return Err(Fault::new(what, "write such as 6432=postgresql"));
            };
            naming.ports.insert(port, system.to_owned());
        }
        Ok(naming)
    }

    /// Every port to watch.
    pub fn ports(&self) -> Vec<u16> {
        self.ports.keys().copied().collect()
    }

    /// A process of this host listens on a port.
    pub fn listens(&mut self, port: u16, comm: &str) {
        if let Some((_, system)) = SERVERS.iter().find(|(name, _)| comm == *name) {
            self.local.insert(port, system);
        }
    }

    /// `db.system.name` of what listens at an address; empty if unknown.
    pub fn system<'a>(
        &'a self,
        address: IpAddr,
        port: u16,
        local: IpAddr,
        from_dns: Option<&'a str>,
    ) -> &'a str {
        let by_port = || self.ports.get(&port).map(String::as_str).unwrap_or_default();
        let here = address.is_loopback() || address == local;
        let by_listener = here.then(|| self.local.get(&port).copied()).flatten();
        by_listener.or(from_dns).unwrap_or_else(by_port)
    }
}

/// The address in the ABI's form, without the IPv4 mapping.
pub fn address(bytes: [u8; 16]) -> IpAddr {
    IpAddr::from(bytes).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_is_named_by_listener_then_dns_then_port() {
        let mut naming = Naming::new(&[7000], &["6433=postgresql".to_owned()]).unwrap();
        let local: IpAddr = "127.0.0.1".parse().unwrap();
        let remote: IpAddr = "10.0.0.9".parse().unwrap();
        let own: IpAddr = "10.0.0.1".parse().unwrap();
        assert_eq!(naming.system(remote, 5432, own, None), "postgresql");
        assert_eq!(naming.system(remote, 6433, own, None), "postgresql");
        assert_eq!(naming.system(remote, 7000, own, None), "");
        assert_eq!(naming.system(remote, 7000, own, Some("redis")), "redis");
        naming.listens(7000, "redis-server");
        assert_eq!(naming.system(local, 7000, local, None), "redis");
        assert_eq!(
            naming.system(remote, 7000, own, None),
            "",
            "a listener here says nothing of another host"
        );
        assert!(naming.ports().contains(&6433) && naming.ports().contains(&7000));
    }

    #[test]
    fn a_malformed_system_says_how_to_write_it() {
        for entry in ["postgresql", "0=redis", "70000=redis", "=redis"] {
            let error = Naming::new(&[], &[entry.to_owned()]).unwrap_err().to_string();
            assert!(error.contains(&format!("{entry:?} is not PORT=SYSTEM")), "{error}");
        }
    }

    #[test]
    fn mapped_addresses_are_shown_as_ipv4() {
        let mut bytes = [0; 16];
        bytes[10..].copy_from_slice(&[0xff, 0xff, 127, 0, 0, 1]);
        assert_eq!(address(bytes).to_string(), "127.0.0.1");
        assert_eq!(address([0; 16]).to_string(), "::");
    }
}
