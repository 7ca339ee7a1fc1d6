# extra_hosts: more hosts for the task's /etc/hosts, and the node itself, at the gateway of the task's network.
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
          grep -q '^10.0.0.5 db$' /etc/hosts && grep -q '^fd00::5 db6$' /etc/hosts &&
          grep -q "^$(ip -4 route show default | cut -d ' ' -f 3) node$" /etc/hosts
        EOT
        ]

        network_mode = "bridge"
        extra_hosts  = ["db:10.0.0.5", "db6:[fd00::5]", "node:host-gateway"]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
