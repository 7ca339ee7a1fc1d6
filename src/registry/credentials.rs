//! Credentials for a registry. Does not know where they are from.

use crate::secret::Secret;

/// A user name and password, or an identity token, for a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Credentials {
    pub username: String,
    pub password: Secret,
}

impl Credentials {
    /// User name that marks the secret as an identity token, which a token server exchanges for access tokens.
    const TOKEN_USER: &str = "<token>";

    pub(super) fn of_token(token: Secret) -> Self {
        Self { username: Self::TOKEN_USER.to_owned(), password: token }
    }

    pub(super) fn identity_token(&self) -> Option<&Secret> {
        (self.username == Self::TOKEN_USER).then_some(&self.password)
    }
}
