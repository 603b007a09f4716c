//! Two Envoys that get their identities from meshca: the server of secrets, a configuration for each, and a request from one to the other.
//!
//! Starts the manager and the SDS server on a Unix socket, writes a bootstrap for a client and a server sidecar, and, where the program
//! `envoy` is found, runs both and sends requests through, before and after the CA is exchanged.
//!
//! ```text
//! cargo run --example envoy_sds --features xds
//! cargo run --example envoy_sds --features xds -- --envoy /usr/local/bin/envoy --folder sds
//! ```

#[path = "common/outcome.rs"]
mod outcome;

use std::error::Error;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use meshca::identity::select::SelectOptions;
use meshca::identity::{Manager, ManagerOptions, MeshResources};
use meshca::resource::Resource;
use meshca::spiffe::{Environment, Workload};
use meshca::xds::{Attested, Caller, SdsEvent, SdsObserver, SdsServer};
use meshca::{MemorySecretStore, SystemClock};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixListener};
use tokio::time::{Instant, sleep};

/// Serves secrets to Envoys, and runs two of them if Envoy is there.
#[derive(Parser)]
struct Args {
    /// The program; it is looked for in PATH, if this names no file.
    #[arg(long, default_value = "envoy")]
    envoy: PathBuf,
    /// Where the configurations are written, and the socket is; a temporary folder, if it is not given.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// How long to serve if Envoy is not there, in seconds.
    #[arg(long = "for", default_value_t = 0)]
    seconds: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    outcome::exit_code(run(&Args::parse()).await)
}

async fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let folder = args.folder.as_deref().unwrap_or(temporary.path());
    std::fs::create_dir_all(folder)?;
    let folder = folder.canonicalize()?;

    let mut options = ManagerOptions::new(SelectOptions::new("east", Environment::Universal));
    options.acknowledgements = true;
    let (manager, driver) = Manager::new(
        meshca::backend_registry(),
        Arc::new(MemorySecretStore::new()),
        Arc::new(SystemClock::new()),
        options,
    );
    let driver = driver.spawn();
    manager.apply(mesh("first-ca")?).await?;

    let socket = folder.join("sds.sock");
    // One of an earlier run is nobody's.
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)?;
    let user = std::fs::metadata(&socket)?.uid();
    let server = SdsServer::builder(manager.clone(), move |caller: &Caller<'_>| {
        attest(caller, user)
    })
    .with_observer(Arc::new(Printed))
    .build();
    println!("serving      SDS on {}", socket.display());
    let serving = tokio::spawn({
        let server = server.clone();
        async move { server.serve_unix(listener, std::future::pending()).await }
    });

    let (inbound, outbound) = (free_port()?, free_port()?);
    let sidecars = [
        ("server", server_sidecar(&socket, inbound)),
        ("client", client_sidecar(&socket, inbound, outbound)),
    ];
    let mut running = Vec::new();
    for (name, bootstrap) in sidecars {
        let file = folder.join(format!("{name}.json"));
        std::fs::write(&file, serde_json::to_vec_pretty(&bootstrap)?)?;
        println!("written      {}", file.display());
        running.extend(start(&args.envoy, name, &file, &folder)?);
    }
    if running.is_empty() {
        println!(
            "not found    {}: name it with --envoy, or run it yourself with `-c FILE`, for a while (--for)",
            args.envoy.display()
        );
        sleep(Duration::from_secs(args.seconds)).await;
    } else {
        let answer = until_answered(outbound, &mut running, &folder).await?;
        println!("answered     {answer}");
        println!("exchanging   the CA: new roots first, then new identities");
        manager.apply(mesh("second-ca")?).await?;
        until_moved(&server).await?;
        let answer = until_answered(outbound, &mut running, &folder).await?;
        println!("answered     {answer}");
    }
    drop(running);
    serving.abort();
    driver.stop().await?;
    Ok(())
}

/// One mesh, whose identities are issued by a built-in CA of this name.
fn mesh(ca: &str) -> Result<MeshResources, Box<dyn Error>> {
    let documents = Resource::parse(format!(
        "
{{type: Mesh, name: default}}
---
type: MeshIdentity
name: {ca}
mesh: default
spec:
  selector: {{dataplane: {{matchLabels: {{}}}}}}
  spiffeID: {{trustDomain: example.org}}
  provider: {{type: Bundled, bundled: {{insecureAllowSelfSigned: true, autogenerate: {{enabled: true}}}}}}
"
    ))?;
    Ok(MeshResources::from_resources(documents)?)
}

/// A process of this user may be any proxy of this example. In a real mesh each proxy has something of its own that proves who it is.
fn attest(caller: &Caller<'_>, user: u32) -> meshca::Result<Attested> {
    let refuse = |why| meshca::Error::new(meshca::ErrorKind::Unauthenticated, why);
    if caller.unix_credentials().map(|peer| peer.uid()) != Some(user) {
        return Err(refuse("it is another user's process"));
    }
    let name = caller.node().id.as_str();
    let workload = Workload::new().with_label("kuma.io/workload", name);
    Ok(Attested::new("default", name, workload))
}

/// Prints what a proxy was given, and what it made of that.
#[derive(Debug)]
struct Printed;

impl SdsObserver for Printed {
    fn observe(&self, event: &SdsEvent<'_>) {
        println!("sds          {event}");
    }
}

/// Takes mTLS from the mesh, and answers by itself.
fn server_sidecar(socket: &Path, inbound: u16) -> Value {
    let tls = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "common_tls_context": common("prefix", "spiffe://example.org/"),
        },
    });
    let response = json!({"status": 200, "body": {"inline_string": "hello from the server"}});
    let caller = json!([{"header": {"key": "x-caller", "value": "%DOWNSTREAM_PEER_URI_SAN%"}}]);
    let listener = listener(
        inbound,
        &json!({"match": {"prefix": "/"}, "direct_response": response, "response_headers_to_add": caller}),
        Some(tls),
    );
    bootstrap("server", socket, &listener, None)
}

/// Takes plaintext from its application, and speaks mTLS to the server.
fn client_sidecar(socket: &Path, inbound: u16, outbound: u16) -> Value {
    let cluster = json!({
        "name": "server",
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": endpoints("server", &address(inbound)),
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": common("exact", "spiffe://example.org/workload/server"),
            },
        },
    });
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": "server"}});
    let listener = listener(outbound, &route, None);
    bootstrap("client", socket, &listener, Some(cluster))
}

/// Who it is, and whom it believes, by SDS; and who the peer must be.
fn common(how: &str, peer: &str) -> Value {
    json!({
        // As a client, Envoy stops at TLS 1.2 by itself.
        "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificate_sds_secret_configs": [secret("default")],
        "combined_validation_context": {
            "default_validation_context": {
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {how: peer}}],
            },
            "validation_context_sds_secret_config": secret("ALL"),
        },
    })
}

fn secret(name: &str) -> Value {
    json!({
        "name": name,
        "sds_config": {
            "resource_api_version": "V3",
            "initial_fetch_timeout": "0s",
            "api_config_source": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "sds"}}],
            },
        },
    })
}

/// A node of this name that knows where secrets come from.
fn bootstrap(name: &str, socket: &Path, listener: &Value, cluster: Option<Value>) -> Value {
    let sds = json!({
        "name": "sds",
        "type": "STATIC",
        "load_assignment": endpoints("sds", &json!({"pipe": {"path": socket}})),
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }},
    });
    let clusters: Vec<Value> = std::iter::once(sds).chain(cluster).collect();
    json!({
        "node": {"id": name, "cluster": name},
        "static_resources": {"clusters": clusters, "listeners": [listener]},
    })
}

fn endpoints(cluster: &str, address: &Value) -> Value {
    let endpoint = json!({"endpoint": {"address": address}});
    json!({"cluster_name": cluster, "endpoints": [{"lb_endpoints": [endpoint]}]})
}

fn address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

fn listener(port: u16, route: &Value, tls: Option<Value>) -> Value {
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "example",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
        }],
    });
    let filter =
        json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": manager});
    let chain = match tls {
        Some(tls) => json!({"filters": [filter], "transport_socket": tls}),
        None => json!({"filters": [filter]}),
    };
    json!({"name": format!("port-{port}"), "address": address(port), "filter_chains": [chain]})
}

/// An Envoy that ends with this value.
struct Sidecar {
    name: &'static str,
    process: Child,
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `None` if the program is not there.
fn start(
    program: &Path,
    name: &'static str,
    bootstrap: &Path,
    folder: &Path,
) -> Result<Option<Sidecar>, Box<dyn Error>> {
    let log = std::fs::File::create(folder.join(format!("{name}.log")))?;
    let mut command = Command::new(program);
    command.arg("-c").arg(bootstrap);
    command.args(["--disable-hot-restart", "--concurrency", "1"]);
    command.stdin(Stdio::null());
    match command.stdout(log.try_clone()?).stderr(log).spawn() {
        Ok(process) => Ok(Some(Sidecar { name, process })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", program.display()).into()),
    }
}

/// Asks through the client until the server answers, which it does when both have their secrets.
async fn until_answered(
    port: u16,
    running: &mut [Sidecar],
    folder: &Path,
) -> Result<String, Box<dyn Error>> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = ask(port).await;
        if let Ok(answer) = &answer
            && answer.starts_with("HTTP/1.1 200")
        {
            let caller = answer.lines().find_map(|it| it.strip_prefix("x-caller: "));
            return Ok(format!(
                "{}, to {}",
                answer.lines().last().unwrap_or_default(),
                caller.unwrap_or("nobody")
            ));
        }
        for sidecar in running.iter_mut() {
            if let Some(status) = sidecar.process.try_wait()? {
                let log = folder.join(format!("{}.log", sidecar.name));
                return Err(format!(
                    "the {} has ended ({status}): see {}",
                    sidecar.name,
                    log.display()
                )
                .into());
            }
        }
        if Instant::now() > deadline {
            return Err(format!("no answer in 30 s, but {answer:?}").into());
        }
        sleep(Duration::from_millis(50)).await;
    }
}

async fn ask(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n")
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Waits until every proxy has said that it serves a certificate of the CA that it is to have.
async fn until_moved(server: &SdsServer) -> Result<(), Box<dyn Error>> {
    let wanted = meshca::identity::BackendKey::Modern("second-ca".to_owned());
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let observed = server.observe("default").await?;
        if observed
            .proxies
            .iter()
            .all(|it| it.holds.as_ref() == Some(&wanted))
        {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err("the proxies did not move in 30 s".into());
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// One that nobody listens on.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}
