# static_mac: mac_address by podman's name.
variable "image" {
  type    = string
  default = "docker.io/library/busybox:latest"
}

job "option" {
  type = "batch"

  group "main" {
    restart {
      attempts = 0
      mode     = "fail"
    }
    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "main" {
      driver = "containerd-driver"

      config {
        image   = var.image
        command = "sh"
        args    = ["-c", <<-EOT
          grep -qx 02:68:b3:29:da:98 /sys/class/net/eth0/address
        EOT
        ]

        network_mode = "bridge"
        static_mac   = "02:68:b3:29:da:98"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
