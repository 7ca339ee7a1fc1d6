//! Who somebody is to a registry. Does not know where that is from.

use crate::secret::Secret;

/// What a user of a registry proves to be one by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Credentials {
    pub username: String,
    pub password: Secret,
}

impl Credentials {
    /// What stands in the place of a user where the secret is an identity token, by which a token server gives others.
    const TOKEN_USER: &str = "<token>";

    pub(super) fn of_token(token: Secret) -> Self {
        Self { username: Self::TOKEN_USER.to_owned(), password: token }
    }

    pub(super) fn identity_token(&self) -> Option<&Secret> {
        (self.username == Self::TOKEN_USER).then_some(&self.password)
    }
}
