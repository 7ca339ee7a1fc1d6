//! A receiver of a shim's events that discards them: each is acknowledged and dropped.
//!
//! Some shims refuse to start without an address for their events. If the connection at that address breaks, they
//! retry and wait for each event; an acknowledged event costs them nothing more.
//!
//! Source of the facts: containerd `api/services/ttrpc/events/v1`, rust-extensions `crates/shim/src/asynchronous/publisher.rs`.

use std::io;
use std::time::Duration;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc;
use tokio::net::{UnixListener, UnixStream};
use ttrpc::proto::{GenMessage, GenMessageError};
use ttrpc::{Code, MessageHeader, Response};

/// Pause after a failed accept, such as for lack of a file descriptor.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections of shims and acknowledges their events, until it is dropped. Connections that exist by then are
/// served on. `failed` is called for each accept that fails.
pub async fn acknowledge_all(listener: UnixListener, failed: impl Fn(io::Error)) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(acknowledge(stream))),
            Err(error) => {
                failed(error);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Acknowledges all events of a connection, until it is closed.
pub async fn acknowledge(mut stream: UnixStream) {
    // The answer to each call that a shim makes is an empty message.
    let Ok(payload) = answer().write_to_bytes() else { return };
    let length = u32::try_from(payload.len()).unwrap_or_default();
    loop {
        let id = match GenMessage::read_from(&mut stream).await {
            Ok(GenMessage { header, .. }) | Err(GenMessageError::ReturnError(header, _)) => header.stream_id,
            Err(GenMessageError::InternalError(_)) => return,
        };
        let answer = GenMessage { header: MessageHeader::new_response(id, length), payload: payload.clone() };
        if answer.write_to(&mut stream).await.is_err() {
            return;
        }
    }
}

fn answer() -> Response {
    let mut answer = Response::new();
    answer.set_status(ttrpc::error::get_status(Code::OK, ""));
    answer
}

#[cfg(test)]
mod tests {
    use ttrpc::Request;

    use super::*;
    use crate::multiplex::Multiplex;

    #[tokio::test]
    async fn every_event_is_acknowledged_and_the_end_ends_it() {
        let (theirs, ours) = UnixStream::pair().unwrap();
        let acknowledging = tokio::spawn(acknowledge(ours));
        let shim = Multiplex::over(theirs);
        for text in ["first", "second"] {
            let event = Request { payload: text.into(), ..Request::default() };
            let answer = shim.call(event).await.unwrap();
            assert_eq!(answer.status.get_or_default().code.enum_value_or_default(), Code::OK);
            assert!(answer.payload.is_empty());
        }
        drop(shim);
        tokio::time::timeout(Duration::from_secs(20), acknowledging).await.unwrap().unwrap();
    }
}
