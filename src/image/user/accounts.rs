//! The accounts of an image, and the lookup of users and groups in them. Pure.
//!
//! Source of the facts: passwd(5), group(5); docker's rules for `user`.

use std::collections::HashMap;

use super::{Identity, UserError};

/// Home directory of Nomad's dynamic users.
const DYNAMIC_HOME: &str = "/nonexistent";

/// Maximum of an id that is given as a number, as docker's.
const ID_LIMIT: u32 = i32::MAX.cast_unsigned();
/// Number that is no id: the kernel takes it for none, and crun for one that is not to be changed.
const NO_ID: u32 = u32::MAX;

/// Contents of `/etc/passwd` and `/etc/group`; empty for a missing file.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    pub passwd: String,
    pub group: String,
}

impl Accounts {
    /// Returns the identity of `user`, with `more_groups` in addition to the user's own groups.
    pub(super) fn identity(&self, user: &str, more_groups: &[String]) -> Result<Identity, UserError> {
        let mut identity = self.user(user)?;
        // Looked up in one pass: both lists may be long, the image's and the job's.
        let mut named = HashMap::new();
        if !more_groups.is_empty() {
            for (name, gid, _) in self.groups() {
                named.entry(name).or_insert(gid);
            }
        }
        for group in more_groups {
            let gid = named.get(group.as_str()).copied().or_else(|| number(group));
            identity.groups.push(gid.ok_or_else(|| unknown_group(group))?);
        }
        identity.groups.sort_unstable();
        identity.groups.dedup();
        if [identity.uid, identity.gid].iter().chain(&identity.groups).any(|id| *id == NO_ID) {
            return Err(UserError::NoId { user: user.to_owned() });
        }
        Ok(identity)
    }

    /// Returns the identity of a user, by docker's rules: a numeric id needs no entry, but takes its group and home
    /// from one; the groups that list the user count unless a group is given.
    fn user(&self, user: &str) -> Result<Identity, UserError> {
        let (user, group) = user.split_once(':').map_or((user, ""), |(user, group)| (user, group));
        let user = if user.is_empty() { "0" } else { user };
        let number = number(user);
        let entry = self.passwd().find(|entry| entry.name == user || Some(entry.uid) == number);
        let (uid, gid, home) = match (&entry, number) {
            (Some(entry), _) => (entry.uid, entry.gid, entry.home),
            (None, Some(uid)) => (uid, 0, "/"),
            (None, None) => match dynamic(user) {
                Some(id) => (id, id, DYNAMIC_HOME),
                None => return Err(unknown("user", user, "/etc/passwd")),
            },
        };
        let home = if home.is_empty() { "/" } else { home }.to_owned();
        if !group.is_empty() {
            let gid = self.gid(group)?;
            return Ok(Identity { uid, gid, groups: vec![gid], home });
        }
        let name = entry.map_or(user, |entry| entry.name);
        let listing = self.groups().filter(|(_, _, members)| members.split(',').any(|member| member == name));
        let groups = listing.map(|(_, gid, _)| gid).chain([gid]).collect();
        Ok(Identity { uid, gid, groups, home })
    }

    fn gid(&self, group: &str) -> Result<u32, UserError> {
        let named = self.groups().find(|(name, _, _)| *name == group).map(|(_, gid, _)| gid);
        named.or_else(|| number(group)).ok_or_else(|| unknown_group(group))
    }

    fn passwd(&self) -> impl Iterator<Item = PasswdEntry<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            Some(PasswdEntry { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
        })
    }

    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            Some((name, fields.nth(1)?.parse().ok()?, fields.next().unwrap_or_default()))
        })
    }
}

fn unknown_group(name: &str) -> UserError {
    unknown("group", name, "/etc/group")
}

fn unknown(kind: &'static str, name: &str, file: &'static str) -> UserError {
    let name = name.to_owned();
    if is_digits(&name) { UserError::TooHigh { kind, name } } else { UserError::Unknown { kind, name, file } }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns the id of a dynamic user. Nomad names it `nomad-<id>`; it is in no file, and the id is that of the user and
/// of the group.
fn dynamic(user: &str) -> Option<u32> {
    number(user.strip_prefix("nomad-")?)
}

/// Parses a numeric id of at most [`ID_LIMIT`].
fn number(text: &str) -> Option<u32> {
    is_digits(text).then(|| text.parse().ok().filter(|id| *id <= ID_LIMIT)).flatten()
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::image::user) fn accounts() -> Accounts {
        Accounts {
            passwd:
                "root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:1000:1000::/home/app:/bin/sh\nbare:x:7:8::\n"
                    .to_owned(),
            group: "root:x:0:\nwheel:x:10:root,app\napp:x:1000:app\naudio:x:29:app,bare\n".to_owned(),
        }
    }

    fn who(user: &str) -> Identity {
        accounts().identity(user, &[]).unwrap()
    }

    fn is(uid: u32, gid: u32, groups: &[u32], home: &str) -> Identity {
        Identity { uid, gid, groups: groups.to_vec(), home: home.to_owned() }
    }

    #[test]
    fn users_and_groups_are_the_images_own() {
        assert_eq!(who(""), is(0, 0, &[0, 10], "/root"));
        assert_eq!(who("app"), is(1000, 1000, &[10, 29, 1000], "/home/app"));
        assert_eq!(who("1000"), who("app"));
        assert_eq!(who("app:audio"), is(1000, 29, &[29], "/home/app"));
        assert_eq!(who("app:77"), is(1000, 77, &[77], "/home/app"));
        assert_eq!(who("4242"), is(4242, 0, &[0], "/"));
        assert_eq!(who("bare"), is(7, 8, &[8, 29], "/"));
    }

    #[test]
    fn a_dynamic_user_of_nomads_needs_no_entry() {
        assert_eq!(who("nomad-80000"), is(80000, 80000, &[80000], "/nonexistent"));
        for wrong in ["nomad-", "nomad-x", "nomad-+1", "nomad-4294967296", "nomad-4294967295"] {
            assert!(accounts().identity(wrong, &[]).unwrap_err().to_string().contains(wrong));
        }
    }

    #[test]
    fn a_number_is_an_id_that_there_can_be() {
        assert_eq!(who("2147483647:0").uid, 2_147_483_647);
        for wrong in ["2147483648", "4294967295", "+5", "-1", "5:4294967295", "5:+7"] {
            let named = wrong.rsplit(':').next().unwrap();
            let error = accounts().identity(wrong, &[]).unwrap_err().to_string();
            assert!(error.contains(&format!("{named:?}")), "{error}");
            assert_eq!(error.contains("at most 2147483647"), named.len() > 2, "{error}");
        }
    }

    #[test]
    fn an_entry_whose_id_there_can_not_be_is_refused() {
        let accounts = Accounts {
            passwd: "app:x:4294967295:0::/:\nodd:x:1:4294967295::/:\nin:x:2:2::/:\n\
                     nfsnobody:x:4294967294:4294967294::/:\n"
                .to_owned(),
            group: "none:x:4294967295:in\nfar:x:3000000000:nfsnobody\n".to_owned(),
        };
        for user in ["app", "odd", "1", "in"] {
            let error = accounts.identity(user, &[]).unwrap_err().to_string();
            assert!(error.contains(user) && error.contains("4294967295"), "{error}");
        }
        assert_eq!(accounts.identity("in:2", &[]).unwrap(), is(2, 2, &[2], "/"));
        accounts.identity("2:2", &["none".to_owned()]).unwrap_err();
        let (highest, far) = (4_294_967_294, 3_000_000_000);
        assert_eq!(accounts.identity("nfsnobody", &[]).unwrap(), is(highest, highest, &[far, highest], "/"));
        assert_eq!(accounts.identity("2:2", &["far".to_owned()]).unwrap().groups, [2, far]);
    }

    #[test]
    fn more_groups_are_the_images_or_numbers() {
        let with = |user: &str, groups: &[&str]| {
            let groups: Vec<_> = groups.iter().map(|group| (*group).to_owned()).collect();
            accounts().identity(user, &groups).map(|identity| identity.groups)
        };
        assert_eq!(with("app", &["wheel", "77"]).unwrap(), [10, 29, 77, 1000]);
        assert_eq!(with("app:audio", &["wheel"]).unwrap(), [10, 29]);
        assert!(with("app", &["ghosts"]).unwrap_err().to_string().contains("group \"ghosts\""));
    }

    /// Looking up each group separately would take minutes.
    #[test]
    fn many_groups_of_a_long_file_are_found_at_once() {
        let names: Vec<_> = (0..60_000).map(|number| format!("g{number}")).collect();
        let group = names.iter().enumerate().map(|(gid, name)| format!("{name}:x:{gid}:\n")).collect();
        let accounts = Accounts { group, ..accounts() };
        let begun = std::time::Instant::now();
        assert_eq!(accounts.identity("app", &names).unwrap().groups.len(), names.len());
        assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    }

    #[test]
    fn a_missing_user_is_named() {
        let error = accounts().identity("ghost", &[]).unwrap_err().to_string();
        assert!(error.contains("user \"ghost\"") && error.contains("/etc/passwd"), "{error}");
        let error = accounts().identity("app:ghosts", &[]).unwrap_err().to_string();
        assert!(error.contains("group \"ghosts\"") && error.contains("/etc/group"), "{error}");
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;

    /// The first line of the groups is the user to look up, too.
    #[test]
    fn accounts() {
        crate::fuzz::pairs("passwd-group", |passwd, group| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let accounts = Accounts { passwd: text(passwd), group: text(group) };
            let named = accounts
                .passwd()
                .map(|entry| entry.name.to_owned())
                .chain(accounts.group.lines().map(str::to_owned));
            let users: Vec<String> = ["", "0", "app", "app:audio", "1000:7"]
                .map(str::to_owned)
                .into_iter()
                .chain(named.take(8))
                .collect();
            for user in users {
                for more in [&[][..], &["audio".to_owned(), "7".to_owned()]] {
                    let Ok(Identity { uid, gid, groups, home }) = accounts.identity(&user, more) else {
                        continue;
                    };
                    assert!(
                        uid != NO_ID && groups.iter().all(|gid| *gid != NO_ID),
                        "{user}: {uid} {groups:?}"
                    );
                    assert!(groups.contains(&gid) && groups.is_sorted() && !home.is_empty());
                }
            }
        });
    }
}
