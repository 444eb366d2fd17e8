//! Who runs on a host: identities as `/proc` gives them.

use observer::identity::{Pm2, Process};

/// Somebody, without pid yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Who(Process);

impl Who {
    /// A system service of this unit.
    pub(crate) fn unit(unit: &str, name: &str, command: &str, user: (u32, &str)) -> Self {
        Self(Process {
            name: name.to_owned(),
            executable: command.split(' ').next().unwrap_or_default().to_owned(),
            command_line: command.to_owned(),
            user_id: user.0,
            user_name: user.1.to_owned(),
            cgroup: format!("/system.slice/{unit}"),
            unit: unit.to_owned(),
            service_name: unit.trim_end_matches(".service").to_owned(),
            ..Process::default()
        })
    }

    /// Worker `worker` of a PM2 app, started by the daemon of `user`.
    pub(crate) fn pm2(app: &str, worker: u32, user: (u32, &str)) -> Self {
        let unit = format!("pm2-{}.service", user.1);
        let home = format!("/home/{}", user.1);
        let mut who = Self::unit(&unit, "node", &format!("node {home}/{app}/dist/main.js"), user);
        who.0.executable = "/usr/bin/node".to_owned();
        who.0.service_name = app.to_owned();
        who.0.pm2 = Some(Pm2 {
            app: app.to_owned(),
            worker,
            home: format!("{home}/.pm2"),
            instance: Some(worker),
            ..Pm2::default()
        });
        who
    }

    /// The daemon of PM2 itself.
    pub(crate) fn pm2_daemon(user: (u32, &str)) -> Self {
        let (unit, home) = (format!("pm2-{}.service", user.1), format!("/home/{}/.pm2", user.1));
        let command = format!("PM2 v5.3.0: God Daemon ({home})");
        let mut who = Self::unit(&unit, "PM2 v5.3.0: God", &command, user);
        who.0.executable = "/usr/bin/node".to_owned();
        who.0.pm2_daemon_home = Some(home);
        who
    }

    /// A process of a container.
    pub(crate) fn container(number: u64, name: &str, command: &str) -> Self {
        let id = format!("{:016x}", (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)).repeat(4);
        let mut who = Self::unit(&format!("docker-{id}.scope"), name, command, (0, "root"));
        who.0.container_id = id;
        who.0.service_name = name.to_owned();
        who
    }

    /// A job of a person or of cron: no service.
    pub(crate) fn session(name: &str, command: &str, user: (u32, &str)) -> Self {
        let mut who = Self::unit("session-4.scope", name, command, user);
        who.0.cgroup = format!("/user.slice/user-{}.slice/session-4.scope", user.0);
        who.0.service_name = name.to_owned();
        who
    }

    /// Below another control group, so that a limit can be set on it.
    pub(crate) fn cgroup(&self) -> &str {
        &self.0.cgroup
    }

    /// With a pid and a time of birth.
    pub(crate) fn born(&self, pid: u32, parent_pid: u32, start_unix_ns: u64) -> Process {
        Process { pid, parent_pid, start_unix_ns, ..self.0.clone() }
    }
}
