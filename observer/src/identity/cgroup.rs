//! What `/proc/PID/cgroup` (cgroups(7)) tells: the path, the systemd unit, the container.

/// Length of the ids that docker, containerd, CRI-O and podman give their containers, in hex digits.
const CONTAINER_ID_DIGITS: usize = 64;

/// Length of a task id of Amazon ECS on Fargate, in hex digits; the container follows as `-NUMBER`.
const ECS_TASK_ID_DIGITS: usize = 32;

/// Where a process is in the control groups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// Path below the hierarchy's root: the v1 memory controller's where it has one, else v2's.
    pub path: String,
    /// Path in the v1 hierarchy of the CPU controller, where that is another one; else empty.
    pub cpu_path: String,
    /// systemd unit or scope; empty if none.
    pub unit: String,
    /// Container id; empty if none.
    pub container_id: String,
}

/// Reads `/proc/PID/cgroup`.
///
/// On a hybrid host the hierarchies may disagree (Docker leaves its containers in `containerd.service` of v2): the one with
/// the memory controller counts, because limits and OOM kills follow it, unless it knows the root only.
pub fn parse_cgroup(text: &str) -> Cgroup {
    let path_of = |wanted: fn(&str, &str) -> bool| {
        text.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            (wanted(id, controllers) && path != "/").then_some(path)
        })
    };
    let unified = path_of(|id, controllers| id == "0" && controllers.is_empty());
    let memory =
        path_of(|_, controllers| controllers.split(',').any(|controller| controller == "memory"));
    let cpu =
        path_of(|_, controllers| controllers.split(',').any(|controller| controller == "cpu"));
    let systemd = path_of(|_, controllers| controllers == "name=systemd");
    let known = [memory, unified, systemd, path_of(|_, _| true)];

    let root = if text.contains(":/") { "/" } else { "" };
    let container = known.into_iter().flatten().find_map(|path| Some((path, container_id(path)?)));
    let unit = match container {
        Some((path, _)) => unit(path),
        None => known.into_iter().flatten().find_map(unit),
    };
    let path = memory.or(unified).unwrap_or(root);
    Cgroup {
        path: path.to_owned(),
        cpu_path: cpu.filter(|cpu| *cpu != path).unwrap_or_default().to_owned(),
        unit: unit.unwrap_or_default().to_owned(),
        container_id: container.map_or("", |(_, id)| id).to_owned(),
    }
}

/// The deepest service or scope of a path. Slices only group.
fn unit(path: &str) -> Option<&str> {
    path.rsplit('/').find(|segment| segment.ends_with(".service") || segment.ends_with(".scope"))
}

/// The deepest segment that is named after a container: `docker-ID.scope`, `cri-containerd-ID.scope`, `crio-ID.scope`,
/// `libpod-ID.scope`, or the bare id. A container's monitor (`...-conmon-ID.scope`) is not in the container.
fn container_id(path: &str) -> Option<&str> {
    path.rsplit('/').filter(|segment| !segment.contains("-conmon-")).find_map(|segment| {
        let name = segment.strip_suffix(".scope").unwrap_or(segment);
        let last = name.rsplit(['-', ':']).next().unwrap_or(name);
        let ecs = || {
            let (task, number) = segment.split_once('-')?;
            let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
            (is_hex(task, ECS_TASK_ID_DIGITS) && is_number).then_some(segment)
        };
        is_hex(last, CONTAINER_ID_DIGITS).then_some(last).or_else(ecs)
    })
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "c1d5f9ab2e4a3a5ab0f6b5ed3a3a9f5e5a40e1f7a0b4d1f55a2b7a1d0c9e8f70";

    #[track_caller]
    fn check(text: &str, path: &str, unit: &str, container_id: &str) {
        let text = text.replace("ID", ID);
        let found = parse_cgroup(&text);
        let expected = Cgroup {
            path: path.replace("ID", ID),
            cpu_path: found.cpu_path.clone(),
            unit: unit.replace("ID", ID),
            container_id: container_id.replace("ID", ID),
        };
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn the_cpu_controller_may_have_a_path_of_its_own() {
        let check = |text: &str, path: &str, cpu_path: &str| {
            let found = parse_cgroup(text);
            assert_eq!((found.path.as_str(), found.cpu_path.as_str()), (path, cpu_path), "{text}");
        };
        check("4:memory:/a\n3:cpu,cpuacct:/b\n", "/a", "/b");
        check("4:memory:/a\n3:cpu,cpuacct:/a\n", "/a", "");
        check("4:memory:/\n3:cpuset:/c\n2:cpu:/b\n", "/", "/b");
        check("0::/a\n", "/a", "");
    }

    #[test]
    fn systemd_units_and_scopes() {
        let same = |path: &str, unit: &str| check(&format!("0::{path}\n"), path, unit, "");
        same("/system.slice/redis-server.service", "redis-server.service");
        same(
            "/system.slice/system-postgresql.slice/postgresql@15-main.service",
            "postgresql@15-main.service",
        );
        same("/user.slice/user-1000.slice/session-3.scope", "session-3.scope");
        same("/user.slice/user-1000.slice/user@1000.service/app.slice/api.service", "api.service");
        same("/system.slice/pm2-deploy.service/workers", "pm2-deploy.service");
        same("/init.scope", "init.scope");
        same("/system.slice", "");
        same("/", "");
        same("/../../system.slice/cron.service", "cron.service");
    }

    #[test]
    fn containers() {
        check(
            "0::/system.slice/docker-ID.scope\n",
            "/system.slice/docker-ID.scope",
            "docker-ID.scope",
            "ID",
        );
        check("0::/docker/ID\n", "/docker/ID", "", "ID");
        check(
            "0::/machine.slice/libpod-ID.scope/container\n",
            "/machine.slice/libpod-ID.scope/container",
            "libpod-ID.scope",
            "ID",
        );
        check(
            "0::/machine.slice/libpod-conmon-ID.scope\n",
            "/machine.slice/libpod-conmon-ID.scope",
            "libpod-conmon-ID.scope",
            "",
        );
        check(
            "0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope",
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope",
            "libpod-ID.scope",
            "ID",
        );
        check(
            "0::/system.slice/containerd.service/default/ID\n",
            "/system.slice/containerd.service/default/ID",
            "containerd.service",
            "ID",
        );
        check(
            "4:memory:/ecs/8a6b3f1e0c2d4b5a9f8e7d6c5b4a3f21/8a6b3f1e0c2d4b5a9f8e7d6c5b4a3f21-3456789012\n",
            "/ecs/8a6b3f1e0c2d4b5a9f8e7d6c5b4a3f21/8a6b3f1e0c2d4b5a9f8e7d6c5b4a3f21-3456789012",
            "",
            "8a6b3f1e0c2d4b5a9f8e7d6c5b4a3f21-3456789012",
        );
    }

    #[test]
    fn kubernetes_pods() {
        let pod = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0e1a4f4d_1111_2222_3333_444455556666.slice";
        for runtime in ["cri-containerd", "crio", "docker"] {
            let path = format!("{pod}/{runtime}-ID.scope");
            check(&format!("0::{path}\n"), &path, &format!("{runtime}-ID.scope"), "ID");
        }
        let path = "/kubepods/burstable/pod0e1a4f4d-1111-2222-3333-444455556666/ID";
        check(&format!("0::{path}\n"), path, "", "ID");
        let path =
            "/system.slice/containerd.service/kubepods-besteffort-pod0e1a.slice:cri-containerd:ID";
        check(&format!("0::{path}\n"), path, "containerd.service", "ID");
    }

    #[test]
    fn version_1_and_hybrid() {
        // Ubuntu 20.04, hybrid: the service is in every hierarchy.
        check(
            "12:memory:/system.slice/ssh.service\n11:cpu,cpuacct:/system.slice\n1:name=systemd:/system.slice/ssh.service\n\
             0::/system.slice/ssh.service\n",
            "/system.slice/ssh.service",
            "ssh.service",
            "",
        );
        // The unit is known to systemd only.
        check(
            "4:memory:/\n1:name=systemd:/system.slice/cron.service\n0::/\n",
            "/",
            "cron.service",
            "",
        );
        check(
            "9:name=systemd:/\n4:memory:/workers/a19e02\n1:cpu:/\n0::/\n",
            "/workers/a19e02",
            "",
            "",
        );
        // Docker with cgroupfs on v1.
        check(
            "11:memory:/docker/ID\n10:cpu,cpuacct:/docker/ID\n1:name=systemd:/docker/ID\n0::/system.slice/containerd.service\n",
            "/docker/ID",
            "",
            "ID",
        );
        check("3:hugetlb,memory:/a:b/c\n", "/a:b/c", "", "");
        check("", "", "", "");
        check("nonsense\n:\n", "", "", "");
    }

    proptest! {
        #[test]
        fn never_panics(text in "([0-9:/a-f,.-]|memory|scope|\n){0,200}") {
            parse_cgroup(&text);
        }
    }
}
