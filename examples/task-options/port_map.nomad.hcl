# port_map: the numbers in the task of ports of its own network block, docker's old way. The first task tells the second its port.
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
          test "$NOMAD_PORT_http" = 8080 && test "$NOMAD_HOST_PORT_http" != 8080 || exit 2
          echo "$NOMAD_ADDR_http" >/alloc/address.new && mv /alloc/address.new /alloc/address
          mkdir -p /local/www && echo hello >/local/www/index.html && httpd -f -p 8080 -h /local/www &
          i=0
          until test -e /alloc/seen; do i=$((i + 1)); test $i -lt 60 || exit 1; sleep 1; done
        EOT
        ]

        network_mode = "bridge"

        port_map {
          http = 8080
        }
      }

      resources {
        cpu    = 20
        memory = 32

        network {
          port "http" {}
        }
      }
    }

    task "client" {
      driver = "containerd-driver"

      config {
        image   = var.image
        command = "sh"
        args    = ["-c", <<-EOT
          i=0
          until wget -q -O - "http://$(cat /alloc/address)/" | grep -qx hello; do
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
