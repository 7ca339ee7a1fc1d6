# bandwidth: how fast a network of the task's own is at most. The second task, in the node's network, takes what the first one sends.
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
          sink=$(ip route | sed -n 's/^default via \([0-9.]*\).*/\1/p')
          i=0
          until start=$(cut -d. -f1 /proc/uptime); head -c 2097152 /dev/zero | nc $sink 18473; do i=$((i + 1)); test $i -lt 60 || exit 3; sleep 1; done
          i=0
          until test -e /alloc/taken; do i=$((i + 1)); test $i -lt 60 || exit 4; sleep 1; done
          test $(($(cut -d. -f1 /proc/uptime) - start)) -ge 3
        EOT
        ]

        network_mode = "bridge"

        bandwidth {
          ingress_rate  = "10m"
          egress_rate   = "512k"
          egress_burst  = "64k"
          ingress_burst = "1m"
        }
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }

    task "sink" {
      driver = "containerd-driver"

      config {
        image   = var.image
        command = "sh"
        args    = ["-c", "nc -l -p 18473 | wc -c | grep -qx 2097152 && touch /alloc/taken"]

        host_network = true
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
