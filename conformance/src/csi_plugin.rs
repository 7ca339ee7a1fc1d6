//! A CSI plugin for the cases, controller and node in one: a volume is a directory, which is mounted where it is
//! published. It runs in a task, from an image that this program is in.
//!
//! Source of the facts: container-storage-interface/spec `csi.proto`; Nomad 1.11.3 `plugins/csi/client.go`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use self::proto::controller_server::{Controller, ControllerServer};
use self::proto::identity_server::{Identity, IdentityServer};
use self::proto::node_server::{Node, NodeServer};

mod proto {
    #![allow(unreachable_pub, unused_qualifications, clippy::pedantic, reason = "generated code")]
    tonic::include_proto!("csi.v1");
}

/// Directory of the volumes in the task.
pub const VOLUMES: &str = "/volumes";
/// Variable by which Nomad names the plugin's socket.
const ENDPOINT: &str = "CSI_ENDPOINT";

type Answer<T> = Result<Response<T>, Status>;

struct Directories;

/// Serves until the task is stopped.
///
/// # Errors
/// Fails if the socket can't be served.
pub fn run() -> Result<ExitCode> {
    let endpoint = std::env::var(ENDPOINT).with_context(|| format!("{ENDPOINT} isn't set"))?;
    let socket = endpoint.strip_prefix("unix://").with_context(|| format!("{ENDPOINT} is {endpoint:?}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(Path::new(socket)))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(socket: &Path) -> Result<()> {
    // An earlier start of the task may have left one.
    let _ = fs::remove_file(socket);
    let listener = UnixListener::bind(socket).with_context(|| format!("listen at {}", socket.display()))?;
    let server = Server::builder()
        .add_service(IdentityServer::new(Directories))
        .add_service(ControllerServer::new(Directories))
        .add_service(NodeServer::new(Directories));
    Ok(server.serve_with_incoming(UnixListenerStream::new(listener)).await?)
}

/// Returns the directory of a volume, whose id is its name.
fn directory(id: &str) -> Result<PathBuf, Status> {
    if id.is_empty() || id.contains('/') || id.starts_with('.') {
        return Err(Status::invalid_argument(format!("{id:?} is no volume's name")));
    }
    Ok(Path::new(VOLUMES).join(id))
}

#[tonic::async_trait]
impl Identity for Directories {
    async fn get_plugin_info(
        &self,
        _: Request<proto::GetPluginInfoRequest>,
    ) -> Answer<proto::GetPluginInfoResponse> {
        let (name, vendor_version) =
            ("directories.conformance".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        Ok(Response::new(proto::GetPluginInfoResponse { name, vendor_version }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<proto::GetPluginCapabilitiesRequest>,
    ) -> Answer<proto::GetPluginCapabilitiesResponse> {
        use proto::plugin_capability::{Service, Type, service};
        let service = Service { r#type: service::Type::ControllerService.into() };
        let capability = proto::PluginCapability { r#type: Some(Type::Service(service)) };
        Ok(Response::new(proto::GetPluginCapabilitiesResponse { capabilities: vec![capability] }))
    }

    async fn probe(&self, _: Request<proto::ProbeRequest>) -> Answer<proto::ProbeResponse> {
        Ok(Response::new(proto::ProbeResponse {}))
    }
}

#[tonic::async_trait]
impl Controller for Directories {
    async fn create_volume(
        &self,
        request: Request<proto::CreateVolumeRequest>,
    ) -> Answer<proto::CreateVolumeResponse> {
        let volume_id = request.into_inner().name;
        fs::create_dir_all(directory(&volume_id)?)?;
        let volume = proto::Volume { capacity_bytes: 0, volume_id };
        Ok(Response::new(proto::CreateVolumeResponse { volume: Some(volume) }))
    }

    async fn delete_volume(
        &self,
        request: Request<proto::DeleteVolumeRequest>,
    ) -> Answer<proto::DeleteVolumeResponse> {
        let directory = directory(&request.into_inner().volume_id)?;
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(Response::new(proto::DeleteVolumeResponse {})),
        }
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<proto::ValidateVolumeCapabilitiesRequest>,
    ) -> Answer<proto::ValidateVolumeCapabilitiesResponse> {
        fs::metadata(directory(&request.into_inner().volume_id)?)?;
        Ok(Response::new(proto::ValidateVolumeCapabilitiesResponse {}))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<proto::ControllerGetCapabilitiesRequest>,
    ) -> Answer<proto::ControllerGetCapabilitiesResponse> {
        use proto::controller_service_capability::{Rpc, Type, rpc};
        let rpc = Rpc { r#type: rpc::Type::CreateDeleteVolume.into() };
        let capability = proto::ControllerServiceCapability { r#type: Some(Type::Rpc(rpc)) };
        Ok(Response::new(proto::ControllerGetCapabilitiesResponse { capabilities: vec![capability] }))
    }
}

#[tonic::async_trait]
impl Node for Directories {
    async fn node_publish_volume(
        &self,
        request: Request<proto::NodePublishVolumeRequest>,
    ) -> Answer<proto::NodePublishVolumeResponse> {
        let request = request.into_inner();
        let (source, target) = (directory(&request.volume_id)?, Path::new(&request.target_path));
        fs::create_dir_all(target)?;
        let (bind, none) = (MsFlags::MS_BIND, None::<&str>);
        mount(Some(&source), target, none, bind, none).map_err(io::Error::from)?;
        if request.readonly {
            let flags = bind | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(none, target, none, flags, none).map_err(io::Error::from)?;
        }
        Ok(Response::new(proto::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<proto::NodeUnpublishVolumeRequest>,
    ) -> Answer<proto::NodeUnpublishVolumeResponse> {
        let request = request.into_inner();
        let target = Path::new(&request.target_path);
        match umount2(target, MntFlags::empty()) {
            // It has been unpublished before.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let _ = fs::remove_dir(target);
        Ok(Response::new(proto::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<proto::NodeGetCapabilitiesRequest>,
    ) -> Answer<proto::NodeGetCapabilitiesResponse> {
        Ok(Response::new(proto::NodeGetCapabilitiesResponse {}))
    }

    async fn node_get_info(
        &self,
        _: Request<proto::NodeGetInfoRequest>,
    ) -> Answer<proto::NodeGetInfoResponse> {
        Ok(Response::new(proto::NodeGetInfoResponse { node_id: "this-node".to_owned() }))
    }
}
