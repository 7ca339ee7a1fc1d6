//! The protocol between a Nomad agent and a driver plugin: Nomad's base and driver services, the schema (hclspec) in
//! which a plugin declares its configuration, and go-plugin's own services. Both ends are generated: the plugin serves
//! them, the conformance host calls them.
//!
//! Source of the facts: hashicorp/nomad `plugins/`, hashicorp/go-plugin `internal/plugin/`.

#![allow(unreachable_pub, unused_qualifications, clippy::pedantic, reason = "generated code")]

pub mod hclspec {
    tonic::include_proto!("hashicorp.nomad.plugins.shared.hclspec");
}

pub mod structs {
    tonic::include_proto!("hashicorp.nomad.plugins.shared.structs");
}

pub mod base {
    tonic::include_proto!("hashicorp.nomad.plugins.base.proto");
}

pub mod driver {
    tonic::include_proto!("hashicorp.nomad.plugins.drivers.proto");
}

pub mod go_plugin {
    tonic::include_proto!("plugin");
}
