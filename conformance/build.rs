//! Compiles the `.proto` file of the CSI plugin, whose text is our own; `protoc` must be on the path.

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure().build_client(false).compile_protos(&["proto/csi.proto"], &["proto"])
}
