# ipc_mode = "host": the task shares memory, semaphores and queues with the host. The operator has to allow it: allowed_modes { ipc = ["host"] }.
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
        args    = ["-c", "! grep -q '^shm /dev/shm ' /proc/mounts"]

        ipc_mode = "host"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
