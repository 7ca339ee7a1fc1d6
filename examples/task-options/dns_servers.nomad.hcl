# dns_servers, dns_search_domains, dns_options: what is in the task's /etc/resolv.conf in place of the host's.
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
          test "$(grep ^nameserver /etc/resolv.conf)" = "nameserver 192.0.2.53" &&
          grep -qx 'search a.example b.example' /etc/resolv.conf &&
          grep -qx 'options ndots:2' /etc/resolv.conf
        EOT
        ]

        dns_servers        = ["192.0.2.53"]
        dns_search_domains = ["a.example", "b.example"]
        dns_options        = ["ndots:2"]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
