//! The buffer of a task whose output doesn't wait for its receiver: lines up to a number of bytes. A line that doesn't
//! fit is dropped, as in docker.

use std::sync::{Arc, LazyLock};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::lines::Line;

/// What a line takes beside its text.
const LINE_OVERHEAD_BYTES: usize = 128;
/// Maximum number of lines that are taken out at once.
const BATCH_LINES: usize = 256;
/// Maximum size of the buffers of all tasks: they are memory of the plugin's.
const ALL_BYTES: usize = 256 << 20;

static ALL: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(ALL_BYTES)));

type Waiting = (Line, OwnedSemaphorePermit);

/// The end of the buffer that takes lines.
#[derive(Clone)]
pub(super) struct Queue {
    lines: mpsc::UnboundedSender<Waiting>,
    room: Arc<Semaphore>,
    size: usize,
}

/// The end of the buffer that lines are sent from.
pub(super) struct QueueEnd {
    lines: mpsc::UnboundedReceiver<Waiting>,
    /// The buffer's part of all.
    _part: OwnedSemaphorePermit,
}

/// Returns a buffer of a size. `None` if those of other tasks leave no room for it.
pub(super) fn new(bytes: u64) -> Option<(Queue, QueueEnd)> {
    within(bytes, &ALL)
}

fn within(bytes: u64, all: &Arc<Semaphore>) -> Option<(Queue, QueueEnd)> {
    let part = Arc::clone(all).try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()?;
    let size = usize::try_from(bytes).ok()?;
    let (lines, end) = mpsc::unbounded_channel();
    let queue = Queue { lines, room: Arc::new(Semaphore::new(size)), size };
    Some((queue, QueueEnd { lines: end, _part: part }))
}

impl Queue {
    /// Adds lines, and returns the number of those that were dropped.
    pub(super) fn push(&self, lines: Vec<Line>) -> usize {
        let mut dropped = 0;
        for line in lines {
            let cost = (line.text.len() + LINE_OVERHEAD_BYTES).min(self.size);
            let cost = u32::try_from(cost).unwrap_or(u32::MAX);
            let permit = Arc::clone(&self.room).try_acquire_many_owned(cost);
            let is_taken = permit.is_ok_and(|permit| self.lines.send((line, permit)).is_ok());
            dropped += usize::from(!is_taken);
        }
        dropped
    }
}

impl QueueEnd {
    /// Returns the next lines, with their room in the buffer, which is free once it is dropped. `None` once nobody adds
    /// any more, and none is left.
    pub(super) async fn next(&mut self) -> Option<(Vec<Line>, Vec<OwnedSemaphorePermit>)> {
        let mut batch = Vec::new();
        let count = self.lines.recv_many(&mut batch, BATCH_LINES).await;
        (count > 0).then(|| batch.into_iter().unzip())
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::logs::Stream;

    fn line(length: usize) -> Line {
        Line { stream: Stream::Stdout, text: vec![b'x'; length], at: SystemTime::UNIX_EPOCH, part: None }
    }

    #[test]
    fn a_line_that_does_not_fit_is_dropped() {
        let (queue, mut end) = new(1000).unwrap();
        assert_eq!(queue.push(vec![line(372), line(372), line(1)]), 1);
        assert_eq!(end.lines.len(), 2);
        drop(end.lines.try_recv().unwrap());
        assert_eq!(queue.push(vec![line(1)]), 0, "there is room again");
    }

    #[test]
    fn a_line_larger_than_the_buffer_fits_into_an_empty_one() {
        let (queue, _end) = new(10).unwrap();
        assert_eq!(queue.push(vec![line(5000)]), 0);
        assert_eq!(queue.push(vec![line(1)]), 1);
    }

    #[test]
    fn the_buffers_of_all_tasks_have_a_limit_together() {
        let all = Arc::new(Semaphore::new(100));
        let first = within(60, &all).unwrap();
        assert!(within(60, &all).is_none());
        drop(first);
        assert!(within(60, &all).is_some());
    }
}
