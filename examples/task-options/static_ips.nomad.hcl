# static_ips: the addresses that a network of the task's own is to give it, in one list. The operator's bridge has to have them.
variable "image" {
  type    = string
  default = "docker.io/library/busybox:latest"
}

variable "ipv4_address" {
  type    = string
  default = "172.26.80.200"
}

variable "ipv6_address" {
  type    = string
  default = "fd00:172:26:80::200"
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
          ip -4 -o addr show eth0 | grep -q ' ${var.ipv4_address}/' &&
          ip -6 -o addr show eth0 | grep -q ' ${var.ipv6_address}/' &&
          grep -q '^${var.ipv4_address} ' /etc/hosts && grep -q '^${var.ipv6_address} ' /etc/hosts
        EOT
        ]

        network_mode = "bridge"
        static_ips   = [var.ipv4_address, var.ipv6_address]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
