# logging: where the output goes, here docker's json-file, and how many log files of a stream are kept, and how large one gets.
# Needs the plugin's log_collection = "driver". The task writes five times as much as its three files hold, and looks at what is kept.
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
        args    = ["-c", "yes line | head -c 960000; for i in $(seq 100); do [ $(ls /alloc/logs/main.stdout.* | wc -l) = 3 ] && [ ! -e /alloc/logs/main.stdout.0 ] && exit 0; sleep 0.1; done; ls -l /alloc/logs >&2; exit 1"]

        logging {
          type = "json-file"
          config {
            max-file = "3"
            max-size = "64k"
          }
        }
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
