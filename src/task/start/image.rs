//! The image of a task that starts, and the start permit: what a start waits for before it makes anything.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::limit::{Queued, StartPermit};
use super::plan::ImageSource;
use super::{Start, StartCaller};
use crate::config::{DriverName, Pull, PullPolicy, TaskAuth as Auth};
use crate::containerd::{Image, Policy, PullOptions};
use crate::registry::{Credentials, is_server};
use crate::task::error::{Error, Result};

/// Time for which an image that was found is taken to be there; less than containerd takes to collect one.
const STALE: Duration = Duration::from_secs(1);
/// Maximum number of lookups of an image that is collected while its start waits for a permit.
const MOST_LOOKS: usize = 5;

impl Start<'_> {
    /// Finds the image, then waits for a permit to make a container from it. Meanwhile the image's name may come to
    /// stand for another image, and the found one be collected: then the image is looked up again.
    pub(super) async fn image_and_permit(
        &self,
        pull_options: &PullOptions,
        caller: &mut StartCaller,
    ) -> Result<(Image, StartPermit)> {
        for _ in 0..MOST_LOOKS {
            let image = tokio::select! {
                image = self.timeline.step("image", self.image(pull_options.clone())) => image?,
                error = caller.cancelled() => return Err(error),
            };
            let found = Instant::now();
            let permit = tokio::select! {
                permit = self.timeline.step("queue", self.permit()) => permit?,
                error = caller.cancelled() => return Err(error),
            };
            let containerd = &self.container.containerd;
            if found.elapsed() < STALE || containerd.snapshot_exists(&image.chain_id).await? {
                return Ok((image, permit));
            }
            tracing::info!(
                task = self.config.id,
                image = image.name,
                "the image was removed while the start waited for a start slot"
            );
        }
        Err(Error::transient(format!(
            "the image {} was removed from containerd each of {MOST_LOOKS} times that this start waited for a start \
             slot; check what removes images in the namespace nomad, such as a garbage collection of another program",
            self.plan.image.name()
        )))
    }

    /// Waits for a start permit. A task whose network is to be shared is waited for before, so that others get the
    /// permits meanwhile.
    async fn permit(&self) -> Result<StartPermit> {
        self.plan.network.comes(self.tasks, self.config).await?;
        self.starting.is_in_line.store(true, Ordering::Relaxed);
        let starts = &self.settings.starts;
        let tell = |wait| match wait {
            Queued::Begun => {
                tracing::debug!(
                    task = self.config.id,
                    container = self.container.id,
                    "waiting for a start slot"
                );
            }
            Queued::Long => self.task_events().queued(starts.at_once()),
        };
        Ok(starts.acquire(tell).await)
    }

    /// Returns the options of the image's pull. A password is sent to no other registry than the one that it is said to
    /// be for.
    pub(super) fn pull_options(&self) -> Result<PullOptions> {
        let Pull { policy, timeout, platform: _, auth, auth_soft_fail: soft_fail } =
            self.plan.options.pull.clone();
        let policy = policy_of(policy, self.settings.config.name, &self.plan.image);
        let timeout = timeout.unwrap_or(self.settings.config.pulls.timeout);
        let mut pull_options = PullOptions { policy, timeout, credentials: None, soft_fail };
        let (Some(Auth { username, password, server_address }), ImageSource::Name(reference)) =
            (auth, &self.plan.image)
        else {
            return Ok(pull_options);
        };
        match server_address.filter(|address| !is_server(address, reference.host())) {
            None => pull_options.credentials = Some(Credentials { username, password }),
            Some(address) => {
                let error = format!(
                    "the option auth.server_address is {address:?}, and the image's registry is {:?}: the \
                     credentials are for another registry",
                    reference.host()
                );
                if !soft_fail {
                    return Err(Error::invalid(error));
                }
                tracing::warn!(
                    task = self.config.id,
                    "{error}; continuing without credentials (auth_soft_fail)"
                );
            }
        }
        Ok(pull_options)
    }

    async fn image(&self, pull_options: PullOptions) -> Result<Image> {
        let reference = match &self.plan.image {
            ImageSource::Name(reference) => reference,
            ImageSource::Archive(source) => {
                return Ok(self.container.containerd.load(source.clone(), pull_options.timeout).await?);
            }
        };
        let task_events = self.task_events();
        let name = reference.to_string();
        let tell = move |event| task_events.pull(&name, event);
        Ok(self.container.containerd.image(reference, pull_options, tell).await?)
    }
}

/// Returns the policy of a pull. A job for docker that sets none has an image with the tag `latest` looked up at each
/// start, as under docker's driver.
fn policy_of(requested: Option<PullPolicy>, name: DriverName, image: &ImageSource) -> Policy {
    let is_latest = || match image {
        ImageSource::Name(reference) => reference.digest().is_none() && reference.tag() == Some("latest"),
        ImageSource::Archive(_) => false,
    };
    match requested {
        Some(PullPolicy::Missing) => Policy::Missing,
        Some(PullPolicy::Always) => Policy::Always,
        Some(PullPolicy::Never) => Policy::Never,
        None if name.is_docker() && is_latest() => Policy::Always,
        None => Policy::Missing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_latest_is_looked_up_under_dockers_name() {
        let policy = |requested, name, image: &str| {
            policy_of(requested, name, &ImageSource::Name(image.parse().unwrap()))
        };
        let (own, docker) = (DriverName::ContainerdDriver, DriverName::Docker);
        for (image, wanted) in
            [("redis", Policy::Always), ("redis:latest", Policy::Always), ("redis:7", Policy::Missing)]
        {
            assert_eq!(policy(None, docker, image), wanted, "{image}");
            assert_eq!(policy(None, own, image), Policy::Missing, "{image}");
        }
        let digest = format!("redis:latest@sha256:{}", "a".repeat(64));
        assert_eq!(policy(None, docker, &digest), Policy::Missing);
        assert_eq!(policy(Some(PullPolicy::Never), docker, "redis"), Policy::Never);
        assert_eq!(policy(Some(PullPolicy::Missing), docker, "redis"), Policy::Missing);
    }
}
