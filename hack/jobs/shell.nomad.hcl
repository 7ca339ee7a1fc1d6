# One task that runs a shell script, once.
variable "image" {
  type = string
}

variable "script" {
  type = string
}

variable "kill_timeout" {
  type    = string
  default = "5s"
}

variable "kill_signal" {
  type    = string
  default = "SIGTERM"
}

variable "count" {
  type    = number
  default = 1
}

variable "memory" {
  type    = number
  default = 32
}

job "shell" {
  type = "batch"

  group "main" {
    count = var.count

    restart {
      attempts = 0
      mode     = "fail"
    }
    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "main" {
      driver       = "containerd-driver"
      kill_timeout = var.kill_timeout
      kill_signal  = var.kill_signal

      config {
        image   = var.image
        command = "sh"
        args    = ["-c", var.script]
      }

      resources {
        cpu    = 20
        memory = var.memory
      }
    }
  }
}
