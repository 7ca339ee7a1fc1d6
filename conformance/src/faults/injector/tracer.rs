//! Traces the threads of one process by ptrace. What the process starts is never traced.

use std::collections::HashMap;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc::{ENOSYS, PTRACE_EVENT_CLONE, SYS_epoll_pwait, SYS_epoll_wait, user_regs_struct};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::memory::Memory;
use super::names::{Names, in_general};
use super::{Report, Request, report};
use crate::faults::point::{Action, Point};
use crate::faults::system_calls;

/// Pause between two looks at threads while some of them hang.
const GLANCE: Duration = Duration::from_micros(200);

pub struct Tracer {
    pid: Pid,
    threads: HashMap<Pid, Thread>,
    names: Names,
    requests: Receiver<Request>,
    armed: Option<Armed>,
    hanging: Option<Hanging>,
}

/// A file system that answers nobody.
struct Hanging {
    /// Beginning of the names of what lies on it.
    root: String,
    until: Instant,
    /// Threads that wait for it.
    threads: Vec<Pid>,
}

/// A thread: what it does, and what is to be done when its call returns.
#[derive(Default)]
struct Thread {
    is_in_call: bool,
    /// Whether it waits for events, as those threads do that answer calls and never wait for anything else.
    is_worker: bool,
    at_return: Option<AtReturn>,
}

#[derive(Clone, Copy)]
enum AtReturn {
    Kill,
    Fail(i32),
    /// The number of bytes that the call was asked for.
    Restore(u64),
}

struct Armed {
    names: Vec<(String, String)>,
    target: Option<(Point, Action)>,
    counts: HashMap<(&'static str, String), u32>,
}

impl Tracer {
    /// Begins to trace each thread of the process.
    ///
    /// # Errors
    /// Fails if the system doesn't allow it.
    pub fn attach(pid: Pid, requests: Receiver<Request>) -> Result<Self> {
        let names = Names::new(pid, Memory::of(pid)?);
        let mut tracer = Self { pid, threads: HashMap::new(), names, requests, armed: None, hanging: None };
        // A thread that isn't traced yet may start another one meanwhile.
        while tracer.attach_new()? {}
        report(&Report::Attached)?;
        Ok(tracer)
    }

    fn attach_new(&mut self) -> Result<bool> {
        let directory = format!("/proc/{}/task", self.pid);
        let mut any = false;
        for entry in std::fs::read_dir(&directory).with_context(|| format!("list {directory}"))? {
            let thread: i32 = entry?.file_name().to_string_lossy().parse()?;
            let thread = Pid::from_raw(thread);
            if self.threads.contains_key(&thread) {
                continue;
            }
            // Threads, but neither forks nor vforks, are followed.
            match ptrace::seize(thread, Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACESYSGOOD) {
                Ok(()) => {
                    match ptrace::interrupt(thread) {
                        Ok(()) | Err(Errno::ESRCH) => {}
                        Err(error) => return Err(error).context("interrupt a thread"),
                    }
                    // Threads for what may wait are only started with the first such work.
                    self.threads.insert(thread, Thread { is_worker: true, ..Thread::default() });
                    any = true;
                }
                // It has ended, or was traced from its start.
                Err(Errno::ESRCH | Errno::EPERM) => {}
                Err(error) => return Err(error).with_context(|| format!("trace thread {thread}")),
            }
        }
        Ok(any)
    }

    /// Follows the process to its end.
    ///
    /// # Errors
    /// Fails if nobody hears the reports any more.
    pub fn run(mut self) -> Result<()> {
        loop {
            self.let_hanging_go_on()?;
            let options = if self.hanging.is_some() {
                WaitPidFlag::__WALL | WaitPidFlag::WNOHANG
            } else {
                WaitPidFlag::__WALL
            };
            let status = match waitpid(None, Some(options)) {
                Ok(WaitStatus::StillAlive) => {
                    std::thread::sleep(GLANCE);
                    continue;
                }
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(Errno::ECHILD) => return Ok(()),
                Err(error) => return Err(error).context("wait for a thread"),
            };
            self.take_requests()?;
            let (thread, signal) = match status {
                WaitStatus::PtraceSyscall(thread) => {
                    self.at_call(thread)?;
                    if self.hanging.as_ref().is_some_and(|hanging| hanging.threads.contains(&thread)) {
                        continue;
                    }
                    (thread, None)
                }
                WaitStatus::PtraceEvent(thread, _, event) => {
                    if event == PTRACE_EVENT_CLONE {
                        self.expect_new(thread);
                    }
                    self.threads.entry(thread).or_default();
                    (thread, None)
                }
                WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
                WaitStatus::Exited(thread, _) | WaitStatus::Signaled(thread, ..) => {
                    self.threads.remove(&thread);
                    continue;
                }
                _ => continue,
            };
            go_on(thread, signal)?;
        }
    }

    fn let_hanging_go_on(&mut self) -> Result<()> {
        if let Some(hanging) = self.hanging.take_if(|hanging| hanging.until <= Instant::now()) {
            hanging.threads.into_iter().try_for_each(|thread| go_on(thread, None))?;
        }
        Ok(())
    }

    fn expect_new(&mut self, parent: Pid) {
        let new = ptrace::getevent(parent).ok().and_then(|new| i32::try_from(new).ok());
        if let Some(new) = new {
            self.threads.entry(Pid::from_raw(new)).or_default();
        }
    }

    fn take_requests(&mut self) -> Result<()> {
        while let Ok(request) = self.requests.try_recv() {
            if let Request::Arm { names, target } = request {
                self.armed = Some(Armed { names, target, counts: HashMap::new() });
                report(&Report::Armed)?;
            }
        }
        Ok(())
    }

    fn at_call(&mut self, thread: Pid) -> Result<()> {
        let Ok(regs) = ptrace::getregs(thread) else { return Ok(()) };
        let state = self.threads.entry(thread).or_default();
        // The kernel says so of each call that begins, which finds the step again if one was missed. It says the same
        // at the return of a call that was not made.
        let is_unmade = regs.rax.cast_signed() == -i64::from(ENOSYS);
        let begins = !state.is_in_call || (is_unmade && state.at_return.is_none());
        state.is_in_call = begins;
        if begins { self.at_begin(thread, regs) } else { self.at_end(thread, regs) }
    }

    fn at_begin(&mut self, thread: Pid, regs: user_regs_struct) -> Result<()> {
        if [SYS_epoll_wait, SYS_epoll_pwait].contains(&regs.orig_rax.cast_signed()) {
            self.threads.entry(thread).or_default().is_worker = true;
        }
        let Some(call) = system_calls::by_number(regs.orig_rax.cast_signed()) else { return Ok(()) };
        let Some(object) = self.names.object(call, &regs) else { return Ok(()) };
        let is_worker = self.threads.get(&thread).is_some_and(|thread| thread.is_worker);
        if is_worker && system_calls::may_wait(call.name, &object) {
            report(&Report::MayWait(format!("{} {object}", call.name)))?;
        }
        let Some(armed) = &mut self.armed else { return Ok(()) };
        let object = in_general(&object, &armed.names);
        let ordinal = armed.counts.entry((call.name, object.clone())).or_default();
        *ordinal += 1;
        let is_hanging = |hanging: &&mut Hanging| {
            object.starts_with(&hanging.root) && system_calls::may_wait(call.name, &object)
        };
        if let Some(hanging) = self.hanging.as_mut().filter(is_hanging) {
            hanging.threads.push(thread);
        }
        let point = Point { call: call.name.to_owned(), object, ordinal: *ordinal };
        let Some((target, action)) = &armed.target else { return report(&Report::Point(point)) };
        if *target != point {
            return Ok(());
        }
        let action = *action;
        if matches!(action, Action::Shorten) && regs.rdx < 2 {
            return Ok(());
        }
        report(&Report::Reached)?;
        self.act(thread, regs, action, &point.object)
    }

    fn act(&mut self, thread: Pid, mut regs: user_regs_struct, action: Action, object: &str) -> Result<()> {
        let state = self.threads.entry(thread).or_default();
        match action {
            Action::Kill => kill(self.pid, Signal::SIGKILL).context("kill the plugin")?,
            Action::KillAfter => state.at_return = Some(AtReturn::Kill),
            Action::Freeze(seconds) => self.freeze(thread, Duration::from_secs(seconds)),
            Action::Hang(seconds) => {
                let (root, until) =
                    (root_of(object).to_owned(), Instant::now() + Duration::from_secs(seconds));
                self.hanging = Some(Hanging { root, until, threads: vec![thread] });
            }
            Action::Fail(errno) => {
                state.at_return = Some(AtReturn::Fail(errno));
                // A call that there isn't.
                regs.orig_rax = u64::MAX;
                set(thread, regs)?;
            }
            Action::Shorten => {
                state.at_return = Some(AtReturn::Restore(regs.rdx));
                regs.rdx = (regs.rdx / 2).max(1);
                set(thread, regs)?;
            }
            Action::Hold => while !matches!(self.requests.recv(), Ok(Request::Release) | Err(_)) {},
        }
        Ok(())
    }

    /// Stops all threads for some time. They are let go on when their stops are seen.
    fn freeze(&self, thread: Pid, time: Duration) {
        for other in self.threads.keys().filter(|other| **other != thread) {
            let _ = ptrace::interrupt(*other);
        }
        std::thread::sleep(time);
    }

    fn at_end(&mut self, thread: Pid, mut regs: user_regs_struct) -> Result<()> {
        let Some(at_return) = self.threads.get_mut(&thread).and_then(|state| state.at_return.take()) else {
            return Ok(());
        };
        match at_return {
            AtReturn::Kill => kill(self.pid, Signal::SIGKILL).context("kill the plugin"),
            AtReturn::Fail(errno) => {
                regs.rax = (-i64::from(errno)).cast_unsigned();
                set(thread, regs)
            }
            AtReturn::Restore(bytes) => {
                regs.rdx = bytes;
                set(thread, regs)
            }
        }
    }
}

/// Returns the beginning of an object's name that stands for its file system: its first word, or its directory.
fn root_of(object: &str) -> &str {
    let end = if object.starts_with('{') { object.find('}').map(|end| end + 1) } else { object.rfind('/') };
    &object[..end.filter(|end| *end > 0).unwrap_or(object.len())]
}

/// Changes the registers of a stopped thread. One that was killed has none.
fn set(thread: Pid, regs: user_regs_struct) -> Result<()> {
    match ptrace::setregs(thread, regs) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).context("change a thread's registers"),
    }
}

/// Lets a thread go on to its next call. One that was killed doesn't.
fn go_on(thread: Pid, signal: Option<Signal>) -> Result<()> {
    match ptrace::syscall(thread, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).context("let a thread go on"),
    }
}
