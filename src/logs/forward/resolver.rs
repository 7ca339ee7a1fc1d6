//! Looks up the names of log receivers, on few threads of its own: a job chooses the name, a name server that doesn't
//! answer holds a thread up, and such a thread can't be ended. The operator's receivers have threads that no job's name
//! holds up, and names that were slow leave half of the others' to those that weren't.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Maximum number of look-ups at once for jobs, of those the names that were slow before, and for the operator.
const AT_ONCE: usize = 16;
const SLOW_AT_ONCE: usize = 8;
const OPERATORS_AT_ONCE: usize = 4;
/// Time after which a look-up counts as slow, time for which its result then stands, and time for which its name counts
/// as slow.
const SLOW_AFTER: Duration = Duration::from_secs(2);
const RESULT_STANDS: Duration = Duration::from_secs(30);
const STAYS_SLOW: Duration = Duration::from_secs(600);

static RESOLVER: LazyLock<Resolver> =
    LazyLock::new(|| Resolver::new(|address| address.to_socket_addrs().map(Iterator::collect)));

type LookUp = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;
/// The result of a look-up, once there is one. An error is its text.
type Found = Option<Result<Vec<SocketAddr>, String>>;

/// Returns the addresses of `<host>:<port>`. The caller limits the wait; the look-up goes on even so.
///
/// # Errors
/// When the name is not known, or no thread can be started.
pub(super) async fn look_up(address: &str, is_operators: bool) -> io::Result<Vec<SocketAddr>> {
    RESOLVER.look_up(address, is_operators).await
}

struct Resolver {
    threads: Arc<Semaphore>,
    slow: Arc<Semaphore>,
    operators: Arc<Semaphore>,
    names: Arc<Mutex<HashMap<String, Name>>>,
    look_up: Arc<LookUp>,
}

enum Name {
    /// A look-up is under way.
    Asked(watch::Receiver<Found>),
    /// The last look-up took long.
    Slow { at: Instant, result: Result<Vec<SocketAddr>, String> },
}

/// The permits of one look-up.
type Permits = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

impl Resolver {
    fn new(look_up: impl Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static) -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self {
            threads: semaphore(AT_ONCE),
            slow: semaphore(SLOW_AT_ONCE),
            operators: semaphore(OPERATORS_AT_ONCE),
            names: Arc::default(),
            look_up: Arc::new(look_up),
        }
    }

    async fn look_up(&self, address: &str, is_operators: bool) -> io::Result<Vec<SocketAddr>> {
        if let Ok(numeric) = address.parse() {
            return Ok(vec![numeric]);
        }
        let mut found = match self.known(address) {
            Some(known) => known,
            None => {
                let permits = self.permits(address, is_operators).await?;
                // Another caller may have begun meanwhile.
                match self.known(address) {
                    Some(known) => known,
                    None => self.begin(address, permits)?,
                }
            }
        };
        let found = found.wait_for(Option::is_some).await.map_err(io::Error::other)?.clone();
        found.unwrap_or_else(|| Ok(Vec::new())).map_err(io::Error::other)
    }

    async fn permits(&self, address: &str, is_operators: bool) -> io::Result<Permits> {
        let of = async |semaphore: &Arc<Semaphore>| {
            Arc::clone(semaphore).acquire_owned().await.map_err(io::Error::other)
        };
        if is_operators {
            return Ok((of(&self.operators).await?, None));
        }
        let is_slow = self.names().contains_key(address);
        let slow = if is_slow { Some(of(&self.slow).await?) } else { None };
        Ok((of(&self.threads).await?, slow))
    }

    fn names(&self) -> MutexGuard<'_, HashMap<String, Name>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the look-up of a name that is under way, or one whose result stands.
    fn known(&self, address: &str) -> Option<watch::Receiver<Found>> {
        match self.names().get(address)? {
            Name::Asked(found) => Some(found.clone()),
            Name::Slow { at, result } if at.elapsed() < RESULT_STANDS => {
                Some(watch::channel(Some(result.clone())).1)
            }
            Name::Slow { .. } => None,
        }
    }

    fn begin(&self, address: &str, permits: Permits) -> io::Result<watch::Receiver<Found>> {
        let (sender, found) = watch::channel(None);
        {
            let mut names = self.names();
            names.retain(|_, name| !matches!(name, Name::Slow { at, .. } if at.elapsed() >= STAYS_SLOW));
            names.insert(address.to_owned(), Name::Asked(found.clone()));
        }
        let (names, look_up, name) = (Arc::clone(&self.names), Arc::clone(&self.look_up), address.to_owned());
        let work = move || {
            let _permits = permits;
            let began = Instant::now();
            let result = look_up(&name).map_err(|error| error.to_string());
            let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
            if began.elapsed() >= SLOW_AFTER {
                names.insert(name, Name::Slow { at: Instant::now(), result: result.clone() });
            } else {
                names.remove(&name);
            }
            drop(names);
            sender.send_replace(Some(result));
        };
        let thread = std::thread::Builder::new().name("receiver-names".to_owned()).spawn(work);
        if let Err(error) = thread {
            self.names().remove(address);
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
        assert_eq!(resolver.look_up("192.0.2.7:1", false).await.unwrap(), [address(7)]);
        assert!(resolver.look_up("[fd00::1]:1", false).await.is_ok());
        assert_eq!(resolver.look_up("a:1", false).await.unwrap_err().to_string(), "asked");
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
            assert!(tokio::time::timeout(SOON, resolver.look_up("slow:1", false)).await.is_err());
        }
        assert_eq!(resolver.threads.available_permits(), AT_ONCE - 1);
        assert_eq!(resolver.look_up("other:1", false).await.unwrap(), [address(1)]);
        assert_eq!(asked.load(Ordering::Relaxed), 2);
        drop(let_go);
        assert_eq!(resolver.look_up("slow:1", false).await.unwrap(), [address(1)]);
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
            assert!(tokio::time::timeout(SOON, resolver.look_up(&name, false)).await.is_err());
        }
        assert_eq!(resolver.threads.available_permits(), 0);
        assert!(tokio::time::timeout(SOON, resolver.look_up("one-more:1", false)).await.is_err());
        assert_eq!(resolver.names.lock().unwrap().len(), AT_ONCE, "it waits for a thread");
        drop(let_go);
        assert!(resolver.look_up("one-more:1", false).await.is_ok());
    }

    #[tokio::test]
    async fn the_operator_s_names_do_not_wait_for_those_of_jobs() {
        let (_let_go, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let resolver = Resolver::new(move |name| {
            if name.starts_with("slow") {
                let _ = wait.lock().map(|wait| wait.recv());
            }
            Ok(vec![address(1)])
        });
        for number in 0..AT_ONCE {
            let name = format!("slow-{number}:1");
            assert!(tokio::time::timeout(SOON, resolver.look_up(&name, false)).await.is_err());
        }
        assert!(tokio::time::timeout(SOON, resolver.look_up("quick:1", false)).await.is_err());
        assert_eq!(resolver.look_up("quick:1", true).await.unwrap(), [address(1)]);
    }

    #[tokio::test]
    async fn a_name_that_was_slow_leaves_threads_to_others() {
        let resolver = Resolver::new(|_| Ok(vec![address(1)]));
        let slow = |age: Duration| Name::Slow {
            at: Instant::now().checked_sub(age).unwrap(),
            result: Ok(vec![address(7)]),
        };
        resolver.names().insert("slow:1".to_owned(), slow(Duration::ZERO));
        assert_eq!(resolver.look_up("slow:1", false).await.unwrap(), [address(7)], "its result stands");
        resolver.names().insert("slow:1".to_owned(), slow(RESULT_STANDS));
        let held = Arc::clone(&resolver.slow)
            .acquire_many_owned(u32::try_from(SLOW_AT_ONCE).unwrap())
            .await
            .unwrap();
        assert!(tokio::time::timeout(SOON, resolver.look_up("slow:1", false)).await.is_err());
        assert_eq!(resolver.look_up("other:1", false).await.unwrap(), [address(1)]);
        drop(held);
        assert_eq!(resolver.look_up("slow:1", false).await.unwrap(), [address(1)]);
        assert!(resolver.names().is_empty(), "it is not slow any more");
    }
}
