//! Names that cloud providers give to databases.

/// Service domains and the database system behind them, as `db.system.name` of the semantic conventions. Longer suffixes
/// come before those that they end with.
const SERVICES: &[(&str, &str)] = &[
    // Amazon: RDS and Aurora (proxies, clusters, China has the region behind), ElastiCache (also serverless), MemoryDB.
    ("rds.amazonaws.com", "other_sql"),
    ("dsql.*.on.aws", "postgresql"),
    ("rds.*.amazonaws.com.cn", "other_sql"),
    ("cache.amazonaws.com", "redis"),
    ("cache.amazonaws.com.cn", "redis"),
    ("memorydb.*.amazonaws.com", "redis"),
    ("memorydb.*.amazonaws.com.cn", "redis"),
    ("redshift.amazonaws.com", "aws.redshift"),
    ("redshift.*.amazonaws.com.cn", "aws.redshift"),
    // Azure, public and sovereign clouds; private endpoints have `privatelink` before.
    ("postgres.database.azure.com", "postgresql"),
    ("postgres.cosmos.azure.com", "postgresql"),
    ("postgres.database.usgovcloudapi.net", "postgresql"),
    ("postgres.database.chinacloudapi.cn", "postgresql"),
    ("mysql.database.azure.com", "mysql"),
    ("mysql.database.usgovcloudapi.net", "mysql"),
    ("mysql.database.chinacloudapi.cn", "mysql"),
    ("database.windows.net", "microsoft.sql_server"),
    ("redis.cache.windows.net", "redis"),
    ("redis.cache.usgovcloudapi.net", "redis"),
    ("redis.cache.chinacloudapi.cn", "redis"),
    ("redisenterprise.cache.azure.net", "redis"),
    ("redis.azure.net", "redis"),
    // Google: Cloud SQL, by public address, private services access, private service connect.
    ("sql.goog", "other_sql"),
    ("sql-psa.goog", "other_sql"),
    ("sql-psc.goog", "other_sql"),
];

/// The database system behind a name, if a provider's naming tells that it is one: `postgresql`, `mysql`, `redis`,
/// `memcached`, or `other_sql` where the port must tell which. `*` in a service's domain stands for one label.
pub fn is_database_name(name: &str) -> Option<&'static str> {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let (service, system) = SERVICES.iter().find(|(service, _)| is_below(&name, service))?;
    // ElastiCache calls the configuration endpoint of a Memcached cluster `cfg`, that of a Redis one `clustercfg`.
    let memcached = service.starts_with("cache.amazonaws.com") && name.contains(".cfg.");
    Some(if memcached { "memcached" } else { *system })
}

/// Whether a name has all labels of the domain at its end, and more before.
fn is_below(name: &str, domain: &str) -> bool {
    let mut labels = name.rsplit('.');
    domain
        .rsplit('.')
        .all(|wanted| labels.next().is_some_and(|label| wanted == "*" || wanted == label))
        && labels.next().is_some_and(|label| !label.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_services() {
        #[track_caller]
        fn check(name: &str, expected: Option<&str>) {
            assert_eq!(is_database_name(name), expected, "{name}");
        }
        for (name, system) in [
            ("shop.c9akciq32.eu-central-1.rds.amazonaws.com", "other_sql"),
            ("shop.cluster-ro-c9akciq32.eu-central-1.rds.amazonaws.com.", "other_sql"),
            ("pool.proxy-c9akciq32.us-east-1.rds.amazonaws.com", "other_sql"),
            ("SHOP.c9akciq32.rds.cn-north-1.AMAZONAWS.com.cn", "other_sql"),
            ("abc123.dsql.us-east-1.on.aws", "postgresql"),
            ("master.sessions.x1y2z3.euc1.cache.amazonaws.com", "redis"),
            ("sessions-x1y2z3.serverless.use1.cache.amazonaws.com", "redis"),
            ("sessions.x1y2z3.ng.0001.cnn1.cache.amazonaws.com.cn", "redis"),
            ("clustercfg.sessions.x1y2z3.use1.cache.amazonaws.com", "redis"),
            ("pages.x1y2z3.cfg.use1.cache.amazonaws.com", "memcached"),
            ("clustercfg.sessions.x1y2z3.memorydb.us-east-1.amazonaws.com", "redis"),
            ("shop.postgres.database.azure.com", "postgresql"),
            ("shop.privatelink.mysql.database.azure.com", "mysql"),
            ("sessions.redis.cache.windows.net", "redis"),
            ("sessions.westeurope.redis.azure.net", "redis"),
            ("1a2b.3c4d.europe-west3.sql-psa.goog", "other_sql"),
        ] {
            check(name, Some(system));
        }
        for name in [
            "",
            ".",
            "rds.amazonaws.com",
            "rds.us-east-1.amazonaws.com",
            "elasticache.us-east-1.amazonaws.com",
            "s3.amazonaws.com",
            "notrds.amazonaws.com",
            "shop.rds.amazonaws.com.example.org",
            "shop.xrds.amazonaws.com",
            ".rds.amazonaws.com",
            "login.windows.net",
        ] {
            check(name, None);
        }
    }
}
