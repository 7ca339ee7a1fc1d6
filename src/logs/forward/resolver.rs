//! Looks up the names of log receivers, on few threads of its own: a job chooses the name, a name server that doesn't
//! answer holds a thread up, and such a thread can't be ended.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Maximum number of look-ups at once.
const AT_ONCE: usize = 16;
/// Time after which a look-up that fails counts as slow, and time for which its error then stands, so that the names of
/// servers that don't answer leave threads to others.
const SLOW_AFTER: Duration = Duration::from_secs(2);
const FAILURE_STANDS: Duration = Duration::from_secs(30);

static RESOLVER: LazyLock<Resolver> =
    LazyLock::new(|| Resolver::new(|address| address.to_socket_addrs().map(Iterator::collect)));

type LookUp = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;
/// The result of a look-up, once there is one. An error is its text.
type Found = Option<Result<Vec<SocketAddr>, String>>;

/// Returns the addresses of `<host>:<port>`. The caller limits the wait; the look-up goes on even so.
///
/// # Errors
/// When the name is not known, or no thread can be started.
pub(super) async fn look_up(address: &str) -> io::Result<Vec<SocketAddr>> {
    RESOLVER.look_up(address).await
}

struct Resolver {
    threads: Arc<Semaphore>,
    names: Arc<Mutex<HashMap<String, Name>>>,
    look_up: Arc<LookUp>,
}

enum Name {
    /// A look-up is under way.
    Asked(watch::Receiver<Found>),
    Failed {
        at: Instant,
        why: String,
    },
}

impl Resolver {
    fn new(look_up: impl Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static) -> Self {
        Self { threads: Arc::new(Semaphore::new(AT_ONCE)), names: Arc::default(), look_up: Arc::new(look_up) }
    }

    async fn look_up(&self, address: &str) -> io::Result<Vec<SocketAddr>> {
        if let Ok(numeric) = address.parse() {
            return Ok(vec![numeric]);
        }
        let mut found = match self.known(address) {
            Some(known) => known?,
            None => {
                let permit = Arc::clone(&self.threads).acquire_owned().await.map_err(io::Error::other)?;
                // Another caller may have begun meanwhile.
                match self.known(address) {
                    Some(known) => known?,
                    None => self.begin(address, permit)?,
                }
            }
        };
        let found = found.wait_for(Option::is_some).await.map_err(io::Error::other)?.clone();
        found.unwrap_or_else(|| Ok(Vec::new())).map_err(io::Error::other)
    }

    /// Returns the look-up of a name that is under way, or the error of one that stands.
    fn known(&self, address: &str) -> Option<io::Result<watch::Receiver<Found>>> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        match names.get(address)? {
            Name::Asked(found) => Some(Ok(found.clone())),
            Name::Failed { at, why } if at.elapsed() < FAILURE_STANDS => {
                Some(Err(io::Error::other(why.clone())))
            }
            Name::Failed { .. } => None,
        }
    }

    fn begin(&self, address: &str, permit: OwnedSemaphorePermit) -> io::Result<watch::Receiver<Found>> {
        let (sender, found) = watch::channel(None);
        {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            names
                .retain(|_, name| !matches!(name, Name::Failed { at, .. } if at.elapsed() >= FAILURE_STANDS));
            names.insert(address.to_owned(), Name::Asked(found.clone()));
        }
        let (names, look_up, name) = (Arc::clone(&self.names), Arc::clone(&self.look_up), address.to_owned());
        let work = move || {
            let _permit = permit;
            let began = Instant::now();
            let result = look_up(&name).map_err(|error| error.to_string());
            let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
            match &result {
                Err(why) if began.elapsed() >= SLOW_AFTER => {
                    names.insert(name, Name::Failed { at: Instant::now(), why: why.clone() });
                }
                _ => drop(names.remove(&name)),
            }
            drop(names);
            sender.send_replace(Some(result));
        };
        let thread = std::thread::Builder::new().name("receiver-names".to_owned()).spawn(work);
        if let Err(error) = thread {
            self.names.lock().unwrap_or_else(PoisonError::into_inner).remove(address);
            return Err(error);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    fn address(number: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, number], 1))
    }

    #[tokio::test]
    async fn an_address_needs_no_look_up() {
        let resolver = Resolver::new(|_| Err(io::Error::other("asked")));
        assert_eq!(resolver.look_up("192.0.2.7:1").await.unwrap(), [address(7)]);
        assert!(resolver.look_up("[fd00::1]:1").await.is_ok());
        assert_eq!(resolver.look_up("a:1").await.unwrap_err().to_string(), "asked");
    }

    #[tokio::test]
    async fn a_slow_name_takes_one_thread() {
        let (let_go, wait) = mpsc::channel::<()>();
        let (wait, asked) = (Mutex::new(wait), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&asked);
        let resolver = Resolver::new(move |name| {
            count.fetch_add(1, Ordering::Relaxed);
            if name == "slow:1" {
                let _ = wait.lock().map(|wait| wait.recv());
            }
            Ok(vec![address(1)])
        });
        for _ in 0..2 * AT_ONCE {
            assert!(tokio::time::timeout(SOON, resolver.look_up("slow:1")).await.is_err());
        }
        assert_eq!(resolver.threads.available_permits(), AT_ONCE - 1);
        assert_eq!(resolver.look_up("other:1").await.unwrap(), [address(1)]);
        assert_eq!(asked.load(Ordering::Relaxed), 2);
        drop(let_go);
        assert_eq!(resolver.look_up("slow:1").await.unwrap(), [address(1)]);
    }

    #[tokio::test]
    async fn slow_names_never_take_more_threads_than_there_are() {
        let (let_go, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let resolver = Resolver::new(move |_| {
            let _ = wait.lock().map(|wait| wait.recv());
            Ok(vec![address(1)])
        });
        for number in 0..AT_ONCE {
            let name = format!("slow-{number}:1");
            assert!(tokio::time::timeout(SOON, resolver.look_up(&name)).await.is_err());
        }
        assert_eq!(resolver.threads.available_permits(), 0);
        assert!(tokio::time::timeout(SOON, resolver.look_up("one-more:1")).await.is_err());
        assert_eq!(resolver.names.lock().unwrap().len(), AT_ONCE, "it waits for a thread");
        drop(let_go);
        assert!(resolver.look_up("one-more:1").await.is_ok());
    }
}
