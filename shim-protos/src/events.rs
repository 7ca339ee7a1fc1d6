//! The other end of a shim's events, for who needs none: each is acknowledged and forgotten.
//!
//! There are shims that refuse to start without an address for their events, and that serve an address which breaks off
//! with tries and waits for each. What is acknowledged costs them nothing more.
//!
//! Source of the facts: containerd `api/services/ttrpc/events/v1`, rust-extensions `crates/shim/src/asynchronous/publisher.rs`.

use std::io;
use std::time::Duration;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc;
use tokio::net::{UnixListener, UnixStream};
use ttrpc::proto::{GenMessage, GenMessageError};
use ttrpc::{Code, MessageHeader, Response};

/// How long nobody is accepted after an accept that failed, such as for want of a descriptor.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts shims and acknowledges what they tell, until it is dropped; the connections that there are by then are served on.
/// `failed` is told of accepts that fail.
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

/// Acknowledges what comes over a connection, until its end.
pub async fn acknowledge(mut stream: UnixStream) {
    // An empty message is what all calls are answered with that a shim makes.
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
