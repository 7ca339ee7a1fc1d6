# A CSI plugin, controller and node in one, as it is written for Nomad's own docker driver. Its volumes are directories in
# one of the host's.
variable "image" {
  type = string
}

variable "volumes" {
  type = string
}

job "csi-plugin" {
  type = "system"

  group "main" {
    task "plugin" {
      driver = "docker"

      config {
        image      = var.image
        privileged = true
        volumes    = ["${var.volumes}:/volumes"]
      }

      csi_plugin {
        id        = "directories"
        type      = "monolith"
        mount_dir = "/csi"
      }

      resources {
        cpu    = 50
        memory = 64
      }
    }
  }
}
