//! Containerd's content store: blobs by digest, their labels, and writes of new ones.
//!
//! A write is a stream that holds a lock on its `ref`; the refs are those of containerd's own clients, so that of two
//! clients that want the same blob one waits for the other. Each message is answered, and the answer awaited: that is
//! the flow control. A write that ends before its commit leaves what it has written, for another to resume.
//! Source of the facts: containerd `services/content/contentserver`, `metadata/content.go` @ v1.6.20.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::{
    AbortRequest, Info, InfoRequest, ReadContentRequest, UpdateRequest, WriteAction, WriteContentRequest,
    WriteContentResponse,
};
use oci_spec::image::Descriptor;
use prost_types::FieldMask;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::Streaming;
use tonic::transport::Channel;

use super::super::{Containerd, Error, Labels, MESSAGE_LIMIT_BYTES, QUICK};
use super::keyed_lock::KeyGuard;
use super::lease::PullLease;
use super::observers::Observers;
use super::wait::Wait;
use crate::image::ImageError;
use crate::sys::error_chain::Chained;

/// Timeout of a commit, which flushes the whole blob to the disk.
const COMMIT: Duration = Duration::from_secs(120);
/// Timeout of writing a part. It is in the page cache at once, unless the disk is overloaded: then it is as slow as a
/// commit.
const WRITE: Duration = COMMIT;
/// Timeout of opening a write: to resume one, the daemon first reads what is there.
const OPEN: Duration = Duration::from_secs(120);
/// Maximum wait for another client's write of the same blob; the pull as a whole is bounded too.
const LOCKED: Duration = Duration::from_secs(240);
/// Interval between two tries to open a write that another client holds.
const LOCKED_POLL: Duration = Duration::from_millis(250);

/// The role of a blob in an image; it is part of the `ref` that writers lock.
#[derive(Debug, Clone, Copy)]
pub(super) enum Role {
    Index,
    Manifest,
    Config,
    Layer,
}

impl Containerd {
    /// Reads a small blob whole.
    ///
    /// # Errors
    /// Not found if the store lacks the blob; unsupported if it is larger than the limit.
    pub(super) async fn read_content(&self, digest: &str, limit_bytes: u64) -> Result<Vec<u8>, Error> {
        let doing = format!("read content {digest}");
        let request = self.request(ReadContentRequest { digest: digest.to_owned(), ..Default::default() })?;
        let mut stream = self.call(&doing, QUICK, self.content().read(request)).await?;
        let mut bytes = Vec::new();
        while let Some(part) = self.within(&doing, QUICK, stream.message()).await? {
            bytes.extend_from_slice(&part.data);
            crate::image::manifest::check_size("it", bytes.len() as u64, limit_bytes)
                .map_err(|error| error.during(&doing))?;
        }
        Ok(bytes)
    }

    pub(super) async fn content_labels(&self, digest: &str) -> Result<Labels, Error> {
        let doing = format!("stat content {digest}");
        let request = self.request(InfoRequest { digest: digest.to_owned() })?;
        let answer = self.call(&doing, QUICK, self.content().info(request)).await?;
        Ok(answer.info.unwrap_or_default().labels)
    }

    /// Adds labels to a blob; its other labels stay.
    pub(super) async fn label_content(&self, digest: &str, labels: Labels) -> Result<(), Error> {
        let doing = format!("label content {digest}");
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = Info { digest: digest.to_owned(), labels, ..Info::default() };
        let request =
            self.request(UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) })?;
        self.call(&doing, QUICK, self.content().update(request)).await.map(drop)
    }

    /// Stores a small blob with its labels, or adds the labels if the blob exists.
    pub(super) async fn store_content(
        &self,
        role: Role,
        descriptor: &Descriptor,
        bytes: Vec<u8>,
        labels: Labels,
        lease: &PullLease,
    ) -> Result<(), Error> {
        let Some(mut ingest) = self.ingest(role, descriptor, lease).await? else {
            return self.label_content(descriptor.digest().as_ref(), labels).await;
        };
        ingest.write(bytes).await?;
        ingest.commit(labels).await
    }

    /// Begins to write a blob from its beginning; `None` if the store has it already, and then the lease keeps it too.
    /// Waits for another writer of the same blob, here or in another client.
    pub(super) async fn ingest(
        &self,
        role: Role,
        descriptor: &Descriptor,
        lease: &PullLease,
    ) -> Result<Option<Ingest>, Error> {
        let mut ingest = self.resume_ingest(role, descriptor, lease).await?;
        if let Some(ingest) = &mut ingest {
            ingest.written_bytes = 0;
        }
        Ok(ingest)
    }

    /// Like [`Self::ingest`], but resumes an earlier write where it ended: at [`Ingest::written_bytes`].
    pub(super) async fn resume_ingest(
        &self,
        role: Role,
        descriptor: &Descriptor,
        lease: &PullLease,
    ) -> Result<Option<Ingest>, Error> {
        let reference = format!("{}-{}", role.name(), descriptor.digest());
        let observers = lease.observers();
        let in_line = |error: ImageError| error.during(format!("write {reference}"));
        let guard = self.shared.images.locks.acquire(&reference, Wait::SameBlob, observers);
        let guard = guard.await.map_err(in_line)?;
        let opening = self.open_unlocked(role, descriptor, lease);
        let opened = observers.wait_for(Wait::SameBlob, opening).await.map_err(in_line)??;
        Ok(opened.map(|mut ingest| {
            ingest.guard = Some(guard);
            ingest
        }))
    }

    /// Opens a write once no other client writes the same blob; `None` if the store has it.
    async fn open_unlocked(
        &self,
        role: Role,
        descriptor: &Descriptor,
        lease: &PullLease,
    ) -> Result<Option<Ingest>, Error> {
        let give_up = Instant::now() + LOCKED;
        loop {
            match Ingest::open(self, role, descriptor, lease).await {
                Ok(ingest) => return Ok(Some(ingest)),
                Err(error) if error.is_already_exists() => return Ok(None),
                Err(Error::Locked { .. }) if Instant::now() < give_up => {
                    tokio::time::sleep(LOCKED_POLL).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel()).max_decoding_message_size(MESSAGE_LIMIT_BYTES)
    }
}

/// A blob being written. If dropped before its commit, the write is closed in the background; the lease's end waits for
/// that, and nobody else writes the blob before.
pub(super) struct Ingest {
    containerd: Containerd,
    doing: String,
    reference: String,
    digest: String,
    size_bytes: i64,
    written_bytes: i64,
    /// The open stream; `None` once the blob is committed.
    stream: Option<WriteStream>,
    /// Set if the written bytes are of no use.
    is_bad: bool,
    guard: Option<KeyGuard>,
    observers: Arc<Observers>,
    leftovers: TaskTracker,
    is_resumable: Arc<AtomicBool>,
}

struct WriteStream {
    requests: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
}

impl Ingest {
    async fn open(
        containerd: &Containerd,
        role: Role,
        descriptor: &Descriptor,
        lease: &PullLease,
    ) -> Result<Self, Error> {
        let digest = descriptor.digest().to_string();
        let reference = format!("{}-{digest}", role.name());
        let doing = format!("write {} {digest}", role.name());
        let size_bytes = i64::try_from(descriptor.size())
            .map_err(|_| ImageError::corrupt("it claims an invalid size").during(&doing))?;
        let (requests, queue) = mpsc::channel(1);
        let status = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: reference.clone(),
            total: size_bytes,
            expected: digest.clone(),
            ..WriteContentRequest::default()
        };
        // The queue is empty and has room for one.
        let _ = requests.try_send(status);
        let request = containerd.leased_request(ReceiverStream::new(queue), lease.id())?;
        let mut client = containerd.content();
        let mut answers = containerd.call(&doing, OPEN, client.write(request)).await?;
        let status = containerd.within(&doing, OPEN, answers.message()).await?.unwrap_or_default();
        Ok(Self {
            containerd: containerd.clone(),
            doing,
            reference,
            digest,
            size_bytes,
            written_bytes: status.offset,
            stream: Some(WriteStream { requests, answers }),
            is_bad: false,
            guard: None,
            observers: Arc::clone(lease.observers()),
            leftovers: lease.leftovers().clone(),
            is_resumable: lease.is_resumable(),
        })
    }

    /// Returns the number of bytes written so far, by earlier tries too.
    pub(super) fn written_bytes(&self) -> u64 {
        self.written_bytes.cast_unsigned()
    }

    /// Ends the write and throws away what was written.
    pub(super) fn discard(mut self) {
        self.is_bad = true;
    }

    /// Appends a part, whose size the caller keeps below the limit of a message.
    pub(super) async fn write(&mut self, data: Vec<u8>) -> Result<(), Error> {
        let length_bytes = data.len() as i64;
        let request = self.message(WriteAction::Write, data, Labels::new());
        self.exchange(request, WRITE).await?;
        self.written_bytes += length_bytes;
        self.is_resumable.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Commits the blob. It is a success, too, if another client was first.
    ///
    /// # Errors
    /// Damaged where the daemon, which has read all that was written, finds another size or digest.
    pub(super) async fn commit(&mut self, labels: Labels) -> Result<(), Error> {
        let request = self.message(WriteAction::Commit, Vec::new(), labels);
        match self.exchange(request, COMMIT).await {
            Err(Error::Refused { doing, reason }) if reason.contains("unexpected commit") => {
                return Err(ImageError::damaged(format!("it does not match its digest or size: {reason}"))
                    .during(doing));
            }
            Err(error) if !error.is_already_exists() => return Err(error),
            _ => {}
        }
        self.stream = None;
        Ok(())
    }

    fn message(&self, action: WriteAction, data: Vec<u8>, labels: Labels) -> WriteContentRequest {
        WriteContentRequest {
            action: action.into(),
            r#ref: self.reference.clone(),
            total: self.size_bytes,
            expected: self.digest.clone(),
            offset: self.written_bytes,
            data,
            labels,
        }
    }

    async fn exchange(&mut self, request: WriteContentRequest, deadline: Duration) -> Result<(), Error> {
        let ended =
            || Error::Troubled { doing: self.doing.clone(), reason: "containerd ended the write".to_owned() };
        let stream = self.stream.as_mut().ok_or_else(ended)?;
        let exchanged = async {
            // If the stream has ended, its last answer says why.
            let _ = stream.requests.send(request).await;
            self.containerd.within(&self.doing, deadline, stream.answers.message()).await
        };
        let answer = self.observers.wait_for(Wait::Store, exchanged).await;
        let answer = answer.map_err(|error| error.during(&self.doing))??;
        answer.map(drop).ok_or_else(ended)
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        let (Some(stream), Ok(runtime)) = (self.stream.take(), Handle::try_current()) else {
            return;
        };
        let (containerd, reference) = (self.containerd.clone(), std::mem::take(&mut self.reference));
        let (is_bad, guard) = (self.is_bad, self.guard.take());
        let close = async move {
            containerd.close(&reference, stream).await;
            if is_bad {
                containerd.abort(reference).await;
            }
            drop(guard);
        };
        self.leftovers.spawn_on(close, &runtime);
    }
}

impl Containerd {
    /// Closes a write: the end of the requests makes the daemon close it, and the end of the answers says that it has.
    async fn close(&self, reference: &str, stream: WriteStream) {
        let doing = format!("close {reference}");
        let WriteStream { requests, mut answers } = stream;
        drop(requests);
        while let Ok(Some(_)) = self.within(&doing, COMMIT, answers.message()).await {}
    }

    async fn abort(&self, reference: String) {
        let doing = format!("abort {reference}");
        let aborted = match self.request(AbortRequest { r#ref: reference }) {
            Ok(request) => self.call(&doing, QUICK, self.content().abort(request)).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = aborted
            && !error.is_not_found()
        {
            tracing::debug!(error = %error.chain(), "can't abort a write; the expiry of its lease does");
        }
    }
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Manifest => "manifest",
            Self::Config => "config",
            Self::Layer => "layer",
        }
    }
}
