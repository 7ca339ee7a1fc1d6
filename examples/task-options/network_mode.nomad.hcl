# network_mode: a network of the task's own, here the built-in bridge; and task:<name>, by which another task of the group is in it.
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
          address=$(ip -4 -o addr show eth0 | sed 's/.*inet \([0-9.]*\).*/\1/')
          grep -q "^$address $(hostname)$" /etc/hosts || exit 2
          httpd -f -p 8080 -h /etc &
          i=0
          until test -e /alloc/seen; do i=$((i + 1)); test $i -lt 60 || exit 1; sleep 1; done
        EOT
        ]

        network_mode = "bridge"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }

    task "beside" {
      driver = "containerd-driver"

      config {
        image   = var.image
        command = "sh"
        args    = ["-c", <<-EOT
          i=0
          until wget -q -O /dev/null http://127.0.0.1:8080/hostname; do
            i=$((i + 1)); test $i -lt 30 || exit 1; sleep 1
          done
          touch /alloc/seen
        EOT
        ]

        network_mode = "task:main"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
