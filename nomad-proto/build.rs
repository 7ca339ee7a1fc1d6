//! Compiles the `.proto` files. They are our own text of Nomad's and go-plugin's wire; `protoc` must be on the path.

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure()
        .extern_path(".hashicorp.nomad.plugins.shared.hclspec", "crate::hclspec")
        .extern_path(".hashicorp.nomad.plugins.shared.structs", "crate::structs")
        .compile_protos(&["proto/base.proto", "proto/driver.proto", "proto/go_plugin.proto"], &["proto"])?;
    // The shared packages have no service: generated on their own, since an external path is not generated at all.
    tonic_prost_build::configure().compile_protos(&["proto/hclspec.proto", "proto/structs.proto"], &["proto"])
}
