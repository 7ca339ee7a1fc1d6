# A task that is told of a change by a script which Nomad runs inside it: of the variable nomad/jobs/<the job's name>, which
# the job may read by being its own. Where the variable says "bad", the script fails, and the task with it.
variable "image" {
  type = string
}

job "script" {
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
        args    = ["-c", "trap 'exit 0' TERM; cp /local/word /alloc/data/ready; sleep 1000000 & wait"]
      }

      template {
        data        = "{{ with nomadVar (print \"nomad/jobs/\" (env \"NOMAD_JOB_NAME\")) }}{{ .word }}{{ end }}"
        destination = "local/word"
        splay       = "0s"
        change_mode = "script"

        change_script {
          command       = "/bin/sh"
          args          = ["-c", "read word </local/word; echo $word: $(cat /app/greeting) >/alloc/data/$word; [ $word != bad ]"]
          timeout       = "10s"
          fail_on_error = true
        }
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
