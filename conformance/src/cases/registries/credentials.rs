//! Credentials for a registry: their sources and the order of these, the errors when they are wrong, and that a
//! password is nowhere but where it is needed.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use harness::config;
use harness::context::CaseContext;
use harness::fixture::auth_registry::{self, PAIR, PASSWORD, USER};
use harness::fixture::{Form, HttpStub, RecordedRequest, Registry, Reply};
use harness::host::Plugin;
use harness::task::LIMIT;
use serde_json::{Value, json};

use crate::cases::support::secrets::assert_not_exposed;
use crate::cases::support::{cases, ensure_eq, is_recoverable, refused, until};

cases!["credentials":
    a_job_brings_its_own_credentials,
    the_operators_credentials_are_for_one_registry,
    a_file_of_dockers_is_read,
    a_helper_gets_nothing_of_the_agents_environment,
    the_login_that_names_most_of_a_repository_is_used,
    a_helper_gets_the_variables_that_the_operator_lists,
    a_helper_of_a_pull_that_is_called_off_leaves_no_process,
    a_denial_is_transient_unless_it_is_of_the_jobs_own_login,
    wrong_credentials_are_named_by_their_user_without_a_fallback,
    a_job_may_go_on_without,
    a_password_is_nowhere_to_be_found,
];

/// A registry with one user, and jobs that run an image from it.
struct PasswordRegistry {
    registry: Registry,
}

impl PasswordRegistry {
    fn new(case: &CaseContext) -> Result<Self> {
        let registry =
            auth_registry::registry(&case.directory().join("locked"), case.environment().catalog())?;
        Ok(Self { registry })
    }

    fn job(&self, auth: Value) -> Value {
        let image = format!("{}/busybox:latest", self.registry.address());
        let mut config = config! { image = image, command = "/bin/cat", args = ["/app/greeting"] };
        config["auth"] = auth;
        config
    }

    /// Runs a task whose image isn't there yet, and removes the image again.
    async fn works(&self, case: &CaseContext, plugin: &Plugin, auth: Value) -> Result<()> {
        let task = case.run(plugin, &self.job(auth)).await?;
        ensure_eq!(task.stdout(plugin).await?, "hello from the image\n");
        task.destroy(plugin).await?;
        let image = format!("{}/busybox:latest", self.registry.address());
        case.environment().containerd().ctr(&["images", "delete", "--sync", &image]).map(drop)
    }

    async fn is_refused(
        &self,
        case: &CaseContext,
        plugin: &Plugin,
        job: &Value,
        words: &[&str],
    ) -> Result<()> {
        let task = case.prepare(plugin, job).await?;
        let status = refused(plugin.start_task(task.config.clone()).await, words)?;
        ensure!(!status.message().contains(PASSWORD), "the password is in {}", status.message());
        case.nothing_left()
    }
}

async fn configured(case: &CaseContext, auth: Value) -> Result<Plugin> {
    let mut options = case.options();
    options["auth"] = auth;
    let mut launch = case.launch();
    launch.look_first_in(case.directory().join("bin"));
    case.plugin_as(&launch, &options).await
}

async fn a_job_brings_its_own_credentials(case: &CaseContext) -> Result<()> {
    let password_registry = PasswordRegistry::new(case)?;
    let mut plugin = case.plugin().await?;
    let address = password_registry.registry.address();
    password_registry.works(case, &plugin, json!({"username": USER, "password": PASSWORD})).await?;
    for server in [address.to_owned(), format!("http://{address}/v2/")] {
        let auth = json!({"username": USER, "password": PASSWORD, "server_address": server});
        password_registry.works(case, &plugin, auth).await?;
    }
    let other = json!({"username": USER, "password": PASSWORD, "server_address": "ghcr.io"});
    password_registry
        .is_refused(
            case,
            &plugin,
            &password_registry.job(other),
            &["auth.server_address", "ghcr.io", address],
        )
        .await?;
    password_registry
        .is_refused(case, &plugin, &password_registry.job(json!(null)), &[address, "without credentials"])
        .await?;
    plugin.shut_down().await
}

async fn the_operators_credentials_are_for_one_registry(case: &CaseContext) -> Result<()> {
    let password_registry = PasswordRegistry::new(case)?;
    for (server, works) in [(password_registry.registry.address(), true), ("ghcr.io", false)] {
        let auth = json!({"username": USER, "password": PASSWORD, "server_address": server});
        let mut plugin = configured(case, auth).await?;
        if works {
            password_registry.works(case, &plugin, json!(null)).await?;
        } else {
            password_registry
                .is_refused(case, &plugin, &password_registry.job(json!(null)), &["without credentials"])
                .await?;
        }
        plugin.shut_down().await?;
    }
    Ok(())
}

async fn a_file_of_dockers_is_read(case: &CaseContext) -> Result<()> {
    let password_registry = PasswordRegistry::new(case)?;
    let address = password_registry.registry.address();
    let file = case.directory().join("config.json");
    let mut plugin = configured(case, json!({"config": file})).await?;
    password_registry
        .is_refused(case, &plugin, &password_registry.job(json!(null)), &[&file.display().to_string()])
        .await?;
    let answer = format!(r#"echo '{{"Username":"{USER}","Secret":"{PASSWORD}"}}'"#);
    auth_registry::helper(&case.directory().join("bin"), "stored", &answer)?;
    for content in [
        json!({"auths": {address: {"auth": PAIR}}}),
        json!({"auths": {address: {}}, "credsStore": "stored"}),
        json!({"credHelpers": {address: "stored"}, "credsStore": "nowhere"}),
    ] {
        std::fs::write(&file, content.to_string())?;
        password_registry.works(case, &plugin, json!(null)).await?;
    }
    std::fs::write(&file, json!({"auths": {"ghcr.io": {"auth": PAIR}}}).to_string())?;
    password_registry
        .is_refused(case, &plugin, &password_registry.job(json!(null)), &["without credentials"])
        .await?;
    plugin.shut_down().await
}

async fn a_helper_gets_nothing_of_the_agents_environment(case: &CaseContext) -> Result<()> {
    let password_registry = PasswordRegistry::new(case)?;
    let address = password_registry.registry.address();
    let bin = case.directory().join("bin");
    let request_file = case.directory().join("asked");
    let noting = format!(
        "{{ echo \"$@\"; cat; echo; env; }} > {}; echo '{{\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'",
        request_file.display()
    );
    auth_registry::helper(&bin, "noting", &noting)?;
    let mut options = case.options();
    options["auth"] = json!({"helper": "noting"});
    let mut launch = case.launch();
    launch.look_first_in(bin.clone());
    launch.environment.push(("VAULT_TOKEN".into(), "s.3cret".into()));
    let mut plugin = case.plugin_as(&launch, &options).await?;
    password_registry.works(case, &plugin, json!(null)).await?;
    let request = std::fs::read_to_string(&request_file).context("it was not asked")?;
    ensure!(request.starts_with(&format!("get\n{address}\n")), "it was asked otherwise: {request}");
    ensure!(
        !request.contains("3cret") && !request.contains("TMPDIR"),
        "it has the agent's environment: {request}"
    );
    for (script, words) in [
        ("echo out of keys >&2; exit 1", &["docker-credential-noting", "out of keys"][..]),
        ("echo nonsense", &["docker-credential-noting", "form"]),
        ("echo credentials not found in native keychain; exit 1", &["without credentials"]),
    ] {
        auth_registry::helper(&bin, "noting", script)?;
        password_registry.is_refused(case, &plugin, &password_registry.job(json!(null)), words).await?;
    }
    plugin.shut_down().await
}

/// Uses a registry of teams, each with a login of its own, as podman writes them into one file.
async fn the_login_that_names_most_of_a_repository_is_used(case: &CaseContext) -> Result<()> {
    const TEAMS: usize = 6;
    let pair = |team: &str| BASE64_STANDARD.encode(format!("{team}:{PASSWORD}"));
    let wants = move |seen: &RecordedRequest| {
        let team = seen.target.split('/').nth(2).unwrap_or_default();
        match seen.header("authorization") {
            Some(sent) if sent == format!("Basic {}", pair(team)) => Reply::Forward,
            _ => {
                let challenge = ("WWW-Authenticate", "Basic realm=\"teams\"".to_owned());
                Reply::Respond(401, vec![challenge], String::new())
            }
        }
    };
    let registry = case.environment().registry();
    let teams = HttpStub::before(registry.address(), wants).await?;
    let address = teams.address();
    std::fs::create_dir_all(case.directory())?;
    let file = case.directory().join("config.json");
    let names = || (0..TEAMS).map(|number| format!("team-{number}"));
    let mut auths: serde_json::Map<_, _> =
        names().map(|team| (format!("{address}/{team}"), json!({"auth": pair(&team)}))).collect();
    // This login would do for the registry as a whole, if no other matched.
    auths.insert(address.clone(), json!({"auth": pair("nobody")}));
    // `team` is how the repositories' names begin, but no path element of them.
    auths.insert(format!("{address}/team"), json!({"auth": pair("team")}));
    std::fs::write(&file, json!({"auths": auths}).to_string())?;
    let mut plugin = configured(case, json!({"config": file})).await?;
    for team in names() {
        let image = case.environment().catalog().with(|tree| tree.file(&team, 0o644, b""))?;
        image.push(registry, &format!("{team}/app"), "v1", Form::Oci)?;
        let mut job = case.shell("exit 3");
        job["image"] = json!(format!("{address}/{team}/app:v1"));
        let task = case.run(&plugin, &job).await.with_context(|| format!("as {team}"))?;
        ensure_eq!(task.wait(&plugin).await?.exit_code, 3);
        task.destroy(&plugin).await?;
    }
    let log = plugin.log().all().join("\n");
    ensure!(!log.contains(PASSWORD), "a password is in the log");
    plugin.shut_down().await
}

async fn a_helper_gets_the_variables_that_the_operator_lists(case: &CaseContext) -> Result<()> {
    let password_registry = PasswordRegistry::new(case)?;
    let bin = case.directory().join("bin");
    let request_file = case.directory().join("asked");
    let noting = format!(
        "env > {}; echo '{{\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'",
        request_file.display()
    );
    auth_registry::helper(&bin, "noting", &noting)?;
    let mut options = case.options();
    options["auth"] = json!({"helper": "noting", "helper_env": ["AWS_PROFILE", "NOT_SET"]});
    let mut launch = case.launch();
    launch.look_first_in(bin);
    launch.environment.push(("AWS_PROFILE".into(), "ours".into()));
    launch.environment.push(("AWS_SECRET".into(), "s.3cret".into()));
    let mut plugin = case.plugin_as(&launch, &options).await?;
    password_registry.works(case, &plugin, json!(null)).await?;
    let request = std::fs::read_to_string(&request_file).context("it was not asked")?;
    ensure!(request.contains("AWS_PROFILE=ours\n"), "it has not what it needs: {request}");
    ensure!(!request.contains("3cret") && !request.contains("NOT_SET"), "it has more than that: {request}");
    plugin.shut_down().await
}

async fn a_helper_of_a_pull_that_is_called_off_leaves_no_process(case: &CaseContext) -> Result<()> {
    let password_registry = PasswordRegistry::new(case)?;
    let pids = case.directory().join("pids");
    let hanging = format!("sleep 300 & echo $! > {0}.new; mv {0}.new {0}; sleep 300", pids.display());
    auth_registry::helper(&case.directory().join("bin"), "hanging", &hanging)?;
    let mut plugin = configured(case, json!({"helper": "hanging"})).await?;
    let mut job = password_registry.job(json!(null));
    job["image_pull_timeout"] = json!("3s");
    password_registry.is_refused(case, &plugin, &job, &["image_pull_timeout"]).await?;
    let pid = std::fs::read_to_string(&pids).context("it was not asked")?;
    let process = std::path::PathBuf::from(format!("/proc/{}", pid.trim()));
    until(LIMIT, "what the helper has started is gone", || !process.exists()).await?;
    plugin.shut_down().await
}

async fn a_denial_is_transient_unless_it_is_of_the_jobs_own_login(case: &CaseContext) -> Result<()> {
    let password_registry = PasswordRegistry::new(case)?;
    let address = password_registry.registry.address();
    let wrong = json!({"username": USER, "password": "wrong-horse", "server_address": address});
    let own = json!({"username": USER, "password": "wrong-horse"});
    for (operators, jobs, recoverable) in
        [(json!(null), json!(null), true), (wrong, json!(null), true), (json!(null), own, false)]
    {
        let mut plugin = configured(case, operators).await?;
        let task = case.prepare(&plugin, &password_registry.job(jobs)).await?;
        let status = refused(plugin.start_task(task.config.clone()).await, &[address, "denies"])?;
        ensure_eq!(is_recoverable(&status)?, recoverable);
        plugin.shut_down().await?;
    }
    case.nothing_left()
}

async fn wrong_credentials_are_named_by_their_user_without_a_fallback(case: &CaseContext) -> Result<()> {
    let password_registry = PasswordRegistry::new(case)?;
    let address = password_registry.registry.address();
    // The operator's credentials are right, and would do.
    let auth = json!({"username": USER, "password": PASSWORD, "server_address": address});
    let mut plugin = configured(case, auth).await?;
    for user in [USER, "stranger"] {
        let job = password_registry.job(json!({"username": user, "password": "wrong-horse"}));
        password_registry.is_refused(case, &plugin, &job, &[address, user]).await?;
    }
    let log = plugin.log().all().join("\n");
    ensure!(!log.contains("wrong-horse") && !log.contains(PASSWORD), "a password is in the log: {log}");
    plugin.shut_down().await
}

async fn a_job_may_go_on_without(case: &CaseContext) -> Result<()> {
    let password_registry = PasswordRegistry::new(case)?;
    let mut plugin = configured(case, json!({"helper": "nowhere"})).await?;
    let mut open = case.shell("exit 3");
    // An image that no other case has: for one that is there no registry is asked.
    let image = case.environment().catalog().with(|tree| tree.file("open", 0o644, b""))?;
    image.push(case.environment().registry(), "open", "v1", Form::Oci)?;
    open["image"] = json!(case.image("open:v1"));
    password_registry.is_refused(case, &plugin, &open, &["docker-credential-nowhere"]).await?;
    open["auth_soft_fail"] = json!(true);
    let task = case.run(&plugin, &open).await?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 3);
    task.destroy(&plugin).await?;
    let mut wrong = password_registry.job(json!({"username": USER, "password": "wrong-horse"}));
    wrong["auth_soft_fail"] = json!(true);
    password_registry.is_refused(case, &plugin, &wrong, &["without credentials"]).await?;
    plugin.shut_down().await
}

async fn a_password_is_nowhere_to_be_found(case: &CaseContext) -> Result<()> {
    let password_registry = PasswordRegistry::new(case)?;
    let mut plugin = case.plugin().await?;
    let mut job = password_registry.job(json!({"username": USER, "password": PASSWORD}));
    job["command"] = json!("/bin/sleep");
    job["args"] = json!(["600"]);
    let task = case.run(&plugin, &job).await?;
    assert_not_exposed(case, &plugin, &task, &[PASSWORD, PAIR])?;
    task.end(&plugin).await?;
    plugin.shut_down().await
}
