//! Conversion of the driver's types to Nomad's messages. Sub-messages that the agent reads without a check are always
//! set: a missing one crashes it.

use std::collections::HashMap;

use nomad_proto::driver as pb;
use nomad_proto::structs::RecoverableError;
use prost::Message;
use prost_types::{Any, Timestamp};
use tonic::{Code, Status};

use super::usage::resource_usage;
use crate::config::DriverName;
use crate::shorten::shorten;
use crate::sys::error_chain::Chained;
use crate::task::{
    DriverNetwork, Error, ExecOutput, Exit, GroupNetwork, Phase, Reading, Started, Task, TaskEvent,
};

/// Version of [`pb::TaskHandle`]; above 0, or the agent takes the handle for missing.
const HANDLE_VERSION: i32 = 1;
const RECOVERABLE_URL: &str = "type.googleapis.com/hashicorp.nomad.plugins.shared.structs.RecoverableError";

/// Labels by which the agent knows the host name of a group's network (hashicorp/nomad
/// `client/allocrunner/network_hook.go`).
const SANDBOX_ID_LABEL: &str = "docker_sandbox_container_id";
const SANDBOX_HOSTNAME_LABEL: &str = "docker_sandbox_hostname";

/// Returns the gRPC status of an error. Never UNAVAILABLE or CANCELLED: Nomad takes them for the plugin's death.
#[expect(clippy::needless_pass_by_value, reason = "it stands in map_err, which passes by value")]
pub(super) fn status(error: Error) -> Status {
    let text = shorten(error.chain().to_string());
    match error {
        // Nomad compares this text, under the code of an error that it doesn't know.
        Error::TaskNotFound => Status::unknown(text),
        Error::Invalid(_) => Status::invalid_argument(text),
        Error::Transient(_) | Error::Conflict(_) => Status::failed_precondition(text),
        Error::Unsupported(_) => Status::unimplemented(text),
        Error::Failed(_) => Status::internal(text),
    }
}

/// Returns the gRPC status of a failed start. A transient error is marked as recoverable, and Nomad then restarts the
/// task by its restart policy.
pub(super) fn start_status(error: Error) -> Status {
    if !matches!(error, Error::Transient(_)) {
        return status(error);
    }
    let detail = Any {
        type_url: RECOVERABLE_URL.to_owned(),
        value: RecoverableError { recoverable: true }.encode_to_vec(),
    };
    let text = shorten(error.chain().to_string());
    let body =
        RpcStatus { code: Code::FailedPrecondition.into(), message: text.clone(), details: vec![detail] };
    Status::with_details(Code::FailedPrecondition, text, body.encode_to_vec().into())
}

/// The message `google.rpc.Status`, which carries a gRPC error's details.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

pub(super) fn missing(what: &str) -> Status {
    Status::invalid_argument(format!("the request has no {what}"))
}

pub(super) fn capabilities(disable_log_collection: bool, driver: DriverName) -> pb::DriverCapabilities {
    use pb::network_isolation_spec::NetworkIsolationMode as Network;
    pb::DriverCapabilities {
        send_signals: true,
        exec: true,
        fs_isolation: pb::driver_capabilities::FsIsolation::Image.into(),
        network_isolation_modes: vec![
            Network::Host.into(),
            Network::Group.into(),
            Network::Task.into(),
            Network::None.into(),
        ],
        // Only a driver that makes the networks of groups can give them a host name.
        must_create_network: driver.is_docker(),
        mount_configs: pb::driver_capabilities::MountConfigs::UnknownMounts.into(),
        disable_log_collection,
        dynamic_workload_users: false,
    }
}

/// Returns the response to a successful start. Its handle echoes the task's configuration; without it the agent never
/// recovers the task.
pub(super) fn started(config: pb::TaskConfig, started: Started) -> pb::StartTaskResponse {
    let network_override = started.network.as_ref().map(network);
    pb::StartTaskResponse {
        result: pb::start_task_response::Result::Success.into(),
        driver_error_msg: String::new(),
        handle: Some(pb::TaskHandle {
            version: HANDLE_VERSION,
            config: Some(config),
            state: pb::TaskState::Running.into(),
            driver_state: started.driver_state,
        }),
        network_override,
    }
}

/// Returns the network namespace of a group. By its labels, which are those of docker's driver, the agent gives the
/// group's tasks its host name: the job's, or else the first twelve letters of the id.
pub(super) fn group_network(
    network: GroupNetwork,
    alloc_id: &str,
    hostname: String,
) -> pb::CreateNetworkResponse {
    use pb::network_isolation_spec::NetworkIsolationMode as Mode;
    let GroupNetwork { path, created } = network;
    let mut labels = HashMap::from([(SANDBOX_ID_LABEL.to_owned(), alloc_id.replace('-', ""))]);
    if !hostname.is_empty() {
        labels.insert(SANDBOX_HOSTNAME_LABEL.to_owned(), hostname);
    }
    let path = path.display().to_string();
    let spec = pb::NetworkIsolationSpec { mode: Mode::Group.into(), path, labels, hosts_config: None };
    pb::CreateNetworkResponse { isolation_spec: Some(spec), created }
}

fn network(network: &DriverNetwork) -> pb::NetworkOverride {
    let DriverNetwork { address, ports, auto_advertise } = network;
    pb::NetworkOverride {
        port_map: ports.iter().map(|(label, port)| (label.clone(), i32::from(*port))).collect(),
        addr: address.to_string(),
        auto_advertise: *auto_advertise,
    }
}

fn exit_result(exit: &Exit) -> pb::ExitResult {
    pb::ExitResult { exit_code: exit.code, signal: exit.signal, oom_killed: exit.oom_killed }
}

pub(super) fn waited(exit: &Exit) -> pb::WaitTaskResponse {
    pb::WaitTaskResponse {
        result: Some(exit_result(exit)),
        err: exit.error.clone().map(shorten).unwrap_or_default(),
    }
}

pub(super) fn inspected(task: &Task) -> pb::InspectTaskResponse {
    let (state, exit) = match task.phase() {
        Phase::Running => (pb::TaskState::Running, None),
        Phase::Exited(exit) => (pb::TaskState::Exited, Some(exit)),
    };
    pb::InspectTaskResponse {
        task: Some(pb::TaskStatus {
            id: task.id().to_owned(),
            name: task.name().to_owned(),
            state: state.into(),
            started_at: Some(Timestamp::from(task.started_at())),
            completed_at: Some(
                exit.as_ref().map_or_else(Timestamp::default, |exit| Timestamp::from(exit.at)),
            ),
            result: Some(exit.as_ref().map(exit_result).unwrap_or_default()),
        }),
        driver: Some(pb::TaskDriverStatus { attributes: task.attributes() }),
        network_override: task.network().map(network),
    }
}

pub(super) fn stats(task_id: &str, reading: &Reading, mhz_per_core: f64) -> pb::TaskStatsResponse {
    pb::TaskStatsResponse {
        stats: Some(pb::TaskStats {
            id: task_id.to_owned(),
            timestamp: Some(Timestamp::from(reading.at)),
            agg_resource_usage: Some(resource_usage(reading, mhz_per_core)),
            resource_usage_by_pid: HashMap::new(),
        }),
    }
}

pub(super) fn event(event: TaskEvent) -> pb::DriverTaskEvent {
    pb::DriverTaskEvent {
        task_id: event.task_id,
        alloc_id: event.alloc_id,
        task_name: event.task_name,
        timestamp: Some(Timestamp::from(event.at)),
        message: event.message,
        annotations: event.annotations,
    }
}

pub(super) fn exec_output(output: ExecOutput) -> pb::ExecTaskResponse {
    pb::ExecTaskResponse {
        stdout: output.stdout,
        stderr: output.stderr,
        result: Some(pb::ExitResult { exit_code: output.code, ..pb::ExitResult::default() }),
    }
}

pub(super) fn exec_stdout(data: Vec<u8>) -> pb::ExecTaskStreamingResponse {
    let stdout = Some(pb::ExecTaskStreamingIoOperation { data, close: false });
    pb::ExecTaskStreamingResponse { stdout, ..Default::default() }
}

pub(super) fn exec_stderr(data: Vec<u8>) -> pb::ExecTaskStreamingResponse {
    let stderr = Some(pb::ExecTaskStreamingIoOperation { data, close: false });
    pb::ExecTaskStreamingResponse { stderr, ..Default::default() }
}

/// Returns the message that reports an exec exit, the last of its stream.
pub(super) fn exec_exited(code: i32) -> pb::ExecTaskStreamingResponse {
    let result = Some(pb::ExitResult { exit_code: code, ..Default::default() });
    pb::ExecTaskStreamingResponse { exited: true, result, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_that_may_work_later_carries_the_detail_that_nomad_reads() {
        let status = start_status(Error::transient("containerd is down"));
        assert_eq!(status.code(), Code::FailedPrecondition);
        let body = RpcStatus::decode(status.details()).unwrap();
        assert_eq!(body.code, 9);
        assert_eq!(body.details[0].type_url, RECOVERABLE_URL);
        assert!(RecoverableError::decode(&*body.details[0].value).unwrap().recoverable);
    }

    #[test]
    fn no_error_of_ours_looks_like_the_plugins_death() {
        let text = || "x".to_owned();
        for error in [
            Error::TaskNotFound,
            Error::invalid(text()),
            Error::transient(text()),
            Error::conflict(text()),
            Error::unsupported(text()),
            Error::failed(text()),
        ] {
            for status in [status(error.clone()), start_status(error)] {
                assert!(!matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Ok));
            }
        }
    }

    #[test]
    fn an_unknown_task_is_reported_in_nomads_words() {
        let status = status(Error::TaskNotFound.context("stop task x"));
        assert_eq!((status.code(), status.message()), (Code::Unknown, "task not found for given id"));
    }

    #[test]
    fn a_groups_network_has_the_labels_by_which_the_agent_names_its_host() {
        let of = |hostname: &str| {
            let network = GroupNetwork { path: "/run/docker/groups/5f1b-0a".into(), created: true };
            let answer = group_network(network, "5f1b-0a", hostname.to_owned());
            assert!(answer.created);
            answer.isolation_spec.unwrap()
        };
        let (named, unnamed) = (of("web"), of(""));
        assert_eq!(named.path, "/run/docker/groups/5f1b-0a");
        assert_eq!(named.mode(), pb::network_isolation_spec::NetworkIsolationMode::Group);
        assert_eq!(named.labels[SANDBOX_HOSTNAME_LABEL], "web");
        assert_eq!(
            unnamed.labels.into_iter().collect::<Vec<_>>(),
            [(SANDBOX_ID_LABEL.to_owned(), "5f1b0a".to_owned())]
        );
    }

    #[test]
    fn dockers_name_alone_makes_the_networks_of_groups() {
        assert!(capabilities(false, DriverName::Docker).must_create_network);
        assert!(!capabilities(false, DriverName::ContainerdDriver).must_create_network);
    }
}
