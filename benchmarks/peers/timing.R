# Shared by the R peers: arguments are the csv file, the number of repeats and this folder.
suppressPackageStartupMessages(library(jsonlite))
arguments <- commandArgs(trailingOnly = TRUE)
repeats <- as.integer(arguments[2])

peak_mb <- function() {
  line <- grep("^VmHWM", readLines("/proc/self/status"), value = TRUE)
  as.numeric(gsub("[^0-9]", "", line)) / 1024
}

seconds <- function(fit) {
  gc(FALSE)
  start <- as.numeric(Sys.time())  # microseconds; system.time stops at milliseconds
  model <- suppressMessages(suppressWarnings(fit()))
  list(time = as.numeric(Sys.time()) - start, model = model)
}

# The first call warms up and is timed apart; `fit` is the whole call, formula and data frame to fitted model.
bench <- function(fit, version) {
  first <- seconds(fit)
  times <- vapply(seq_len(repeats), function(i) seconds(fit)$time, 0)
  result <- list(first = first$time, times = as.list(times), loglik = as.numeric(logLik(first$model)),
                 peak_mb = peak_mb(), version = version)
  cat("RESULT ", toJSON(result, auto_unbox = TRUE, digits = NA), "\n", sep = "")
}
