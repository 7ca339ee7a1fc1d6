# ipv4_address, ipv6_address, advertise_ipv6_address: the addresses that a network of the task's own is to give it. The operator's bridge has to have them.
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
          grep -q '^${var.ipv4_address} ' /etc/hosts && grep -q '^${var.ipv6_address} ' /etc/hosts || exit 2
          # Nomad has been told the second one, for its service.
          i=0
          until grep -qx '${var.ipv6_address}' /local/service; do i=$((i + 1)); test $i -lt 30 || exit 1; sleep 1; done
        EOT
        ]

        network_mode           = "bridge"
        ipv4_address           = var.ipv4_address
        ipv6_address           = var.ipv6_address
        advertise_ipv6_address = true
      }

      service {
        name         = "option-addresses"
        provider     = "nomad"
        address_mode = "auto"
      }

      template {
        destination = "local/service"
        change_mode = "noop"
        data        = "{{ range nomadService \"option-addresses\" }}{{ .Address }}\n{{ end }}"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
