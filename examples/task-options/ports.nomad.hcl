# ports: the group's ports that a network of the task's own forwards to it. The second task reaches the first by the node's port.
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

    network {
      port "http" {
        to = 8080
      }
    }

    task "main" {
      driver = "containerd-driver"

      config {
        image   = var.image
        command = "sh"
        args    = ["-c", <<-EOT
          mkdir -p /local/www && echo hello >/local/www/index.html && httpd -f -p 8080 -h /local/www &
          i=0
          until test -e /alloc/seen; do i=$((i + 1)); test $i -lt 60 || exit 1; sleep 1; done
        EOT
        ]

        network_mode = "bridge"
        ports        = ["http"]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }

    task "client" {
      driver = "containerd-driver"

      config {
        image   = var.image
        command = "sh"
        args    = ["-c", <<-EOT
          i=0
          until wget -q -O - http://$NOMAD_ADDR_http/ | grep -qx hello; do
            i=$((i + 1)); test $i -lt 30 || exit 1; sleep 1
          done
          touch /alloc/seen
        EOT
        ]

        host_network = true
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
