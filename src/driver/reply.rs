//! Conversion of the driver's types to Nomad's messages. Sub-messages that the agent reads without a check are always
//! set: a missing one crashes it.

use nomad_proto::driver as pb;
use nomad_proto::structs::RecoverableError;
use prost::Message;
use prost_types::{Any, Timestamp};
use tonic::{Code, Status};

use super::usage::resource_usage;
use crate::shorten::shorten;
use crate::sys::error_chain::Chained;
use crate::task::{DriverNetwork, Error, ExecOutput, Exit, Phase, Reading, Started, Task, TaskEvent};

/// Version of [`pb::TaskHandle`]; above 0, or the agent takes the handle for missing.
const HANDLE_VERSION: i32 = 1;
const RECOVERABLE_URL: &str = "type.googleapis.com/hashicorp.nomad.plugins.shared.structs.RecoverableError";

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

pub(super) fn capabilities(disable_log_collection: bool) -> pb::DriverCapabilities {
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
        must_create_network: false,
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
            resource_usage_by_pid: std::collections::HashMap::new(),
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
}
